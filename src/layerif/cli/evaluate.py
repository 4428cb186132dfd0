"""`layerif evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.output import emit, say


def evaluate(
    model: options.Model,
    tasks: Annotated[
        str,
        typer.Option("--tasks", help="Tasks and corpora, separated by commas.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file to write the results to.", show_default=False),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", help="Test rows of each task.", show_default="all"),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", help="Tokens of each corpus.", show_default="all"),
    ] = None,
    style: options.Style = "alpaca",
    max_length: options.MaxLength = 512,
    context_length: options.ContextLength = 512,
    batch_tokens: options.BatchTokens = 2048,
    dtype: options.DtypeOption = "float32",
    device: options.Device = "auto",
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure accuracy on tasks' test splits, and perplexity on corpora."""
    from layerif.runs import refuse_existing
    from layerif.tasks import load_sources

    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    tokenizer = options.tokenizer_for(style, model, trust_remote_code=trust_remote_code)
    sources = load_sources(tasks.split(","), data_dir=data_dir, style=style, tokenizer=tokenizer)

    from layerif.evaluation import evaluate as measure
    from layerif.model import open_model
    from layerif.report import caveat_lines, results_table

    opened, tokenizer = open_model(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    results = measure(
        opened,
        tokenizer,
        sources,
        samples=samples,
        seed=seed,
        max_length=max_length,
        context_length=context_length,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
    )
    if out is not None:
        results.save(out)
    table = results_table({results.model.name: results}, "Evaluation")
    emit(table, results.model_dump(mode="json"), as_json=as_json)
    for line in caveat_lines({results.model.name: results}):
        say(line, as_json=as_json)
    if out is not None:
        say(f"wrote {out}", as_json=as_json)
