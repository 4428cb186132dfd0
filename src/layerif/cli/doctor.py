"""`layerif doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.errors import NumericalError

if TYPE_CHECKING:
    from rich.table import Table

    from layerif.influence import Diagnosis


def doctor(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id, model folder, .gguf file, or the alias smollm2.", show_default=False
        ),
    ],
    task: Annotated[
        str, typer.Option("--task", help="One of `layerif tasks`, or a file of examples.")
    ] = "agreement",
    train_samples: Annotated[
        int, typer.Option("--train-samples", help="Training samples of the run that is planned.")
    ] = 200,
    validation_samples: Annotated[
        int, typer.Option("--validation-samples", help="Its validation samples.")
    ] = 50,
    rank: Annotated[int, typer.Option("--rank", help="Rank of the LoRA subspace.")] = 8,
    style: options.Style = "alpaca",
    template_option: options.TemplateOption = None,
    max_length: options.MaxLength = 512,
    batch_tokens: options.BatchTokens = 1024,
    dtype: options.DtypeOption = "float32",
    device: options.Device = "auto",
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Check on a few samples that a model can be scored, and estimate what a full run takes.

    Gradients by hooks against plain autograd, a batch against single samples, finite values, every
    projection reached. Exit status 3 where a check fails.
    """
    from layerif.data import load_task

    words = options.prompts(style, template_option, model, trust_remote_code=trust_remote_code)
    data = load_task(task, data_dir=data_dir, **words)
    train = data.sample("train", options.rows(context, data, "train"), seed)
    validation = data.sample("validation", options.rows(context, data, "validation"), seed)

    from layerif.influence import examine
    from layerif.model import open_model

    opened, tokenizer = open_model(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    found = examine(
        opened,
        tokenizer,
        train,
        validation,
        rank=rank,
        seed=seed,
        max_length=max_length,
        batch_tokens=batch_tokens,
    )
    emit(_table(found, f"{model}, {dtype}"), {"model": model, **asdict(found)}, as_json=as_json)
    for line in _estimate_lines(found):
        say(line, as_json=as_json)
    if not found.ok:
        raise typer.Exit(NumericalError.exit_code)


def _table(found: Diagnosis, title: str) -> Table:
    from rich.text import Text

    from layerif.report.tables import plain_table

    table = plain_table(title)
    for column in ("check", "", "detail"):
        table.add_column(column)
    words = {
        True: Text("ok", "green"),
        False: Text("failed", "bold red"),
        None: Text("-", "dim"),
    }
    for check in found.checks:
        table.add_row(check.name, words[check.ok], check.detail)
    return table


def _estimate_lines(found: Diagnosis) -> list[str]:
    about = found.estimate
    if about is None:
        return []
    giga = {name: f"{value / 1e9:.2f} GB" for name, value in asdict(about).items()}
    return [
        f"A run of {about.samples:,} samples, {about.tokens:,} tokens at "
        f"{about.tokens_per_second:,.0f} a second: about {about.seconds:,.0f} s, and solving.",
        f"Memory: {giga['weights']} of weights and {giga['activations']} for the largest batch, "
        f"beside {giga['gradients']} of gradients, in memory or on disk; free are "
        f"{giga['free_memory']} and {giga['free_disk']}.",
    ]
