"""`layerif run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.output import emit, say


def run(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe to follow.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Run folder, instead of the recipe's.", show_default=False),
    ] = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Score, plan, prune and evaluate from one file: dense, uniform and LayerIF side by side.

    A run that was cut short goes on after its last finished stage.
    """
    from layerif.studies.recipe import Recipe

    followed = Recipe.load(recipe)
    if out is not None:
        followed = followed.model_copy(update={"out": str(out)})

    from layerif.artifacts import Comparisons
    from layerif.report import caveat_lines, comparison_lines, results_table
    from layerif.studies.pipeline import COMPARISON_FILE, run_recipe

    results = run_recipe(followed, data_dir=data_dir)
    emit(
        results_table(results, f"{followed.model} at {followed.sparsity.target:.0%} sparsity"),
        {name: result.model_dump(mode="json") for name, result in results.items()},
        as_json=as_json,
    )
    found = Comparisons.load(Path(followed.out) / COMPARISON_FILE)
    for line in [*comparison_lines(found.comparisons), *caveat_lines(results)]:
        say(line, as_json=as_json)
    say(f"Scores, plans, pictures and the pruned model are in {followed.out}", as_json=as_json)
