"""`layerif score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe


def score(
    context: typer.Context,
    model: options.Model,
    task: Annotated[
        str,
        typer.Option(
            "--task",
            help="One of `layerif tasks`, or a JSONL, CSV or parquet file.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder to write to.", show_default=False)],
    train_samples: Annotated[
        int, typer.Option("--train-samples", help="Samples whose influence is measured.")
    ] = 200,
    validation_samples: Annotated[
        int, typer.Option("--validation-samples", help="Samples whose mean loss is moved.")
    ] = 50,
    rank: Annotated[int, typer.Option("--rank", help="Rank of the LoRA subspace.")] = 8,
    alpha: Annotated[float, typer.Option("--alpha", help="Alpha of the LoRA subspace.")] = 16.0,
    damping: Annotated[
        float, typer.Option("--damping", help="lambda = damping * mean(|g|^2) / d in each block.")
    ] = 0.1,
    style: options.Style = "alpaca",
    max_length: options.MaxLength = 512,
    batch_tokens: options.BatchTokens = 1024,
    dtype: options.DtypeOption = "float32",
    device: options.Device = "auto",
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure the influence of training samples through each decoder layer.

    Writes scores.json and influence.safetensors to the run folder, and recipe.yaml, which replays
    it. Cut short, the same command goes on where it was.
    """
    from layerif.artifacts.scores import SCORES_FILE
    from layerif.checkpoint import check_out
    from layerif.tasks import load_task

    check_out(out, out / SCORES_FILE, overwrite=overwrite)
    tokenizer = options.tokenizer_for(style, model, trust_remote_code=trust_remote_code)
    data = load_task(task, data_dir=data_dir, style=style, tokenizer=tokenizer)
    train = data.sample("train", train_samples, seed)
    validation = data.sample("validation", validation_samples, seed)

    from layerif.model import open_model
    from layerif.report import scores_table
    from layerif.studies.stages import score_into

    opened, tokenizer = open_model(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    scores = score_into(
        out,
        opened,
        tokenizer,
        data,
        train=train,
        validation=validation,
        options={
            "rank": rank,
            "alpha": alpha,
            "damping": damping,
            "seed": seed,
            "max_length": max_length,
            "batch_tokens": batch_tokens,
        },
        overwrite=overwrite,
    )
    write_recipe(context, out)
    emit(scores_table(scores), scores.summary(), as_json=as_json)
    say(f"wrote {out}", as_json=as_json)
