"""`layerif doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from layerif.cli import options
from layerif.cli.derived import expanded
from layerif.cli.output import emit
from layerif.core.aliases import MODEL_HELP
from layerif.data.options import SampleOptions, TaskOptions
from layerif.errors import NumericalError
from layerif.influence.options import ProbeOptions
from layerif.model.options import OpeningOptions

if TYPE_CHECKING:
    from layerif.influence.doctor import Diagnosis


class DoctorOptions(TaskOptions):
    """The task of the run that is planned."""

    task: str = "agreement"
    """One of `layerif tasks`, or a JSONL, CSV or parquet file."""


@expanded
def doctor(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    task: DoctorOptions,
    samples: SampleOptions,
    probe: ProbeOptions,
    opening: OpeningOptions,
    as_json: options.Json = False,
) -> None:
    """Check on a few samples that a model can be scored, and estimate what a full run takes.

    Gradients by hooks against plain autograd, a batch against single samples, finite values, every
    projection reached. Exit status 3 where a check fails.
    """
    data = task.load(model, trust_remote_code=opening.trust_remote_code)
    train = samples.rows(data, "train", probe.seed)
    validation = samples.rows(data, "validation", probe.seed)

    from rich.text import Text

    from layerif.influence.doctor import examine
    from layerif.report.tables import plain_table

    found = examine(*opening.open_named(model), train, validation, options=probe)
    table = plain_table(f"{model}, {opening.dtype}", "check", "", "detail")
    words = {True: Text("ok", "green"), False: Text("failed", "bold red"), None: Text("-", "dim")}
    for check in found.checks:
        table.add_row(check.name, words[check.ok], check.detail)
    value = {"model": model, **asdict(found)}
    emit(table, value, *_estimate_lines(found), as_json=as_json)
    if not found.ok:
        raise typer.Exit(NumericalError.exit_code)


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
