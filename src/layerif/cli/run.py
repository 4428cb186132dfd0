"""Recipes written and followed, and run folders cleaned: `layerif init`, `run` and `clean`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerif.cli import options
from layerif.cli.command import given, values
from layerif.cli.output import emit, say
from layerif.cli.replay import COMMAND, refuse_commanded, replay
from layerif.cli.study import STEPS, follow
from layerif.core.options import Options
from layerif.errors import InputError

if TYPE_CHECKING:
    from layerif.artifacts import Results


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe to start from; `layerif run` follows it."""
    from layerif.core.files import check_place, write_text
    from layerif.workflows.template import template

    check_place(path, folder=False)
    if path.exists():
        raise InputError(f"{path} already exists; name another file: layerif init other.yaml")
    write_text(path, template())
    say(f"wrote {path}; look it over, then: layerif run {path}")


def run(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="YAML recipe to follow.")],
    model: Annotated[str | None, typer.Option(help="Model, instead of the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder, instead of the recipe's.")] = None,
    data_dir: options.DataDir = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Another value for an option of the recipe, such as seed=1, or score.seed=1 for "
            "that of a stage; repeat for several.",
        ),
    ] = None,
    no_cache: options.NoCache = False,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Score, plan, prune, fine-tune and evaluate from one file, all plans side by side.

    Nothing finished is done twice, and a changed option redoes just what depends on it. A recipe
    that another command wrote is replayed, and a study, a recipe with steps, runs several commands.
    """
    from layerif.workflows.document import Document
    from layerif.workflows.recipe import Recipe

    document = Document.read(recipe)
    for change in changes or ():
        document = document.with_option(change)
    if isinstance(document.value, dict):
        refuse_commanded(document)
        for key, followed_by in ((COMMAND, replay), (STEPS, follow)):
            if key in document.value:
                said = given(context) - {"recipe", "set"}
                changed = {name: value for name, value in values(context).items() if name in said}
                raise typer.Exit(followed_by(context, document, changed))
    placed = {"model": model, "out": out, "data_dir": data_dir}
    given_here = {name: str(value) for name, value in placed.items() if value is not None}
    if isinstance(document.value, dict):
        document = document.of(document.value | given_here)
    followed = Recipe.of(document)
    if overwrite:
        raise InputError(
            "--overwrite has no effect here: a run replaces the results of its own recipe, and "
            "nothing else; leave it out"
        )
    context.params["out"] = followed.out  # where an interrupted run has its results

    from layerif.artifacts import Comparisons
    from layerif.cli.compare import cells_shown, dropped_shown, quantised_shown
    from layerif.report.comparisons import comparison_lines
    from layerif.report.tables import caveat_lines, results_table
    from layerif.workflows.bench import COMPARISON_FILE
    from layerif.workflows.pipeline import (
        DROPPED_FOLDER,
        QUANTIZED_FOLDER,
        TRAINED_FOLDER,
        run_recipe,
    )

    outcome = run_recipe(
        followed,
        cache=options.likelihood_cache(no_cache=no_cache),
        trust_remote_code=trust_remote_code,
    )
    results = outcome.pruned
    value: dict[str, Any] = dict(results)
    if outcome.trained:
        place = Path(followed.out) / TRAINED_FOLDER
        trained = cells_shown(outcome.trained, "Experts trained by plan", place)
        value[TRAINED_FOLDER] = trained[1]
    further: dict[str, tuple[dict[str, Results], Callable[..., Any], Options | None]] = {
        QUANTIZED_FOLDER: (outcome.quantized, quantised_shown, followed.bits),
        DROPPED_FOLDER: (outcome.dropped, dropped_shown, followed.depth),
    }
    further = {name: each for name, each in further.items() if each[0]}
    value |= {name: own for name, (own, _, _) in further.items()}
    title = f"{followed.model} at {followed.sparsity.target:.0%} sparsity"
    found = Comparisons.load(Path(followed.out) / COMPARISON_FILE)
    lines = [*comparison_lines(found.comparisons), *caveat_lines(results)]
    emit(results_table(results, title), value, *lines, as_json=as_json)
    if as_json:
        return
    if outcome.trained:
        emit(trained[0], {}, *trained[2], as_json=False)
    for name, (own, shown, study) in further.items():
        title, lines = shown(own, study, Path(followed.out) / name)
        emit(results_table(own, title), {}, *lines, as_json=False)
    say(f"Scores, plans, pictures and the pruned models are in {followed.out}")


def clean(
    folder: Annotated[Path, typer.Argument(help="Run folder, or the result of a command.")],
) -> None:
    """Remove what a run folder keeps for later: gradients, and steps of interrupted work.

    Results stay.
    """
    from layerif.core.checkpoint import steps_folder
    from layerif.workflows.cleaning import remove_kept

    places = remove_kept(folder)
    if not places:
        raise InputError(
            f"{folder} keeps nothing for later: neither gradients nor {steps_folder(folder)} exist"
        )
    say(*(f"removed {place} ({size / 1e9:.2f} GB)" for place, size in places))
