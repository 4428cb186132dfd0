"""`layerif evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe
from layerif.errors import InputError

if TYPE_CHECKING:
    from layerif.artifacts import Results


def evaluate(
    context: typer.Context,
    model: options.Model,
    tasks: Annotated[
        str,
        typer.Option("--tasks", help="Tasks and corpora, separated by commas.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file to write the results to.", show_default=False),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            help="Results of another model on the same rows, to compare with in pairs.",
            show_default=False,
        ),
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
    scoring: options.Scoring = "likelihood",
    max_length: options.MaxLength = 512,
    context_length: options.ContextLength = 512,
    batch_tokens: options.BatchTokens = 2048,
    dtype: options.DtypeOption = "float32",
    device: options.Device = "auto",
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    no_cache: options.NoCache = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure accuracy on tasks' test splits, and perplexity on corpora.

    With --against, say how each figure differs from another model's, and whether that is more than
    noise.
    """
    from layerif.checkpoint import check_out
    from layerif.tasks import Task, load_sources

    if out is not None:
        check_out(out, out, overwrite=overwrite)
    tokenizer = options.tokenizer_for(style, model, trust_remote_code=trust_remote_code)
    names = [name.strip() for name in tasks.split(",")]
    sources = load_sources(names, data_dir=data_dir, style=style, tokenizer=tokenizer)
    reference = (
        None
        if against is None
        else _reference(
            against, {(s.name, scoring if isinstance(s, Task) else "likelihood") for s in sources}
        )
    )

    from layerif.evaluation import compare
    from layerif.model import open_model
    from layerif.report import caveat_lines, comparison_lines, results_table
    from layerif.studies.stages import evaluate_into

    opened, tokenizer = open_model(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    results = evaluate_into(
        out,
        opened,
        tokenizer,
        sources,
        options={
            "samples": samples,
            "seed": seed,
            "max_length": max_length,
            "context_length": context_length,
            "max_tokens": max_tokens,
            "batch_tokens": batch_tokens,
            "scoring": scoring,
        },
        cache=options.likelihood_cache(no_cache=no_cache),
        overwrite=overwrite,
    )
    if out is not None:
        write_recipe(context, out)
    own = {results.model.name: results}
    value = results.model_dump(mode="json")
    table = results_table(own, "Evaluation")
    if reference is None or not as_json:
        emit(table, value, as_json=as_json)
    for line in caveat_lines(own):
        say(line, as_json=as_json)
    if out is not None:
        say(f"wrote {out}", as_json=as_json)
    if reference is not None:
        # Last, so that figures which turn out to be of other rows are kept and shown all the same.
        found = compare({**own, str(against): reference}, str(against))
        for line in comparison_lines(found):
            say(line, as_json=as_json)
        if as_json:
            comparisons = [comparison.model_dump(mode="json") for comparison in found]
            emit(table, {"results": value, "comparisons": comparisons}, as_json=True)


def _reference(path: Path, wanted: set[tuple[str, str]]) -> Results:
    """Results to compare with, refused before the evaluation where they cannot serve."""
    from layerif.artifacts import Results

    reference = Results.load(path)
    shared = [m for m in reference.measurements if (m.name, m.scoring) in wanted]
    if not shared:
        has = [(m.name, m.scoring) for m in reference.measurements]
        raise InputError(
            f"{path} has results on {_listed(has)}, and {_listed(sorted(wanted))} is to be "
            "measured: there is nothing to compare"
        )
    if any(m.outcomes is None for m in shared):
        raise InputError(
            f"{path} holds no outcomes item by item, which a comparison in pairs needs; measure "
            "that model again"
        )
    return reference


def _listed(measured: Sequence[tuple[str, str]]) -> str:
    named = (n if scoring == "likelihood" else f"{n} by {scoring}" for n, scoring in measured)
    return ", ".join(named) or "nothing"
