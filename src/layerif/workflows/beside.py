"""Plans that a recipe measures beside LayerIF's and the uniform one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from layerif.artifacts import LayerScores, MetricScores, Plan
from layerif.core.progress import note
from layerif.data import Corpus, SelfText
from layerif.errors import InputError
from layerif.metrics.options import MeasureOptions
from layerif.plans.named import INFLUENCE, find_plan
from layerif.search.options import SearchOptions
from layerif.workflows.folder import RunFolder
from layerif.workflows.recipe import Recipe
from layerif.workflows.searching import check_unedited, search_into
from layerif.workflows.stages import measure_into

# Opens a model and its tokenizer as the recipe asks.
Open = Callable[..., tuple[Any, Any]]


def check_beside(recipe: Recipe, calibration: Corpus | SelfText) -> None:
    """Refuse what cannot be made beside, before anything starts.

    Raises:
        InputError: a plan reads calibration text that is only sampled from the model.
    """
    if recipe.sparsity.beside and not isinstance(calibration, Corpus):
        raise InputError(
            "the plans beside LayerIF's read a corpus or a text file; give one as the calibration "
            f"of pruning in place of {recipe.prune.calibration!r}, or leave `beside` empty"
        )


def plans_beside(
    recipe: Recipe, folder: RunFolder, influence: LayerScores, calibration: Corpus, open_: Open
) -> dict[str, Plan]:
    """The plans by their titles, each with its authors' own parameter."""
    found = {}
    for name in recipe.sparsity.beside:
        title = find_plan(name, "sparsity").title or name
        note(f"{title}: the plan")
        found[title] = _plan(recipe, folder, name, influence, calibration, open_)
    return found


def _plan(
    recipe: Recipe,
    folder: RunFolder,
    name: str,
    influence: LayerScores,
    calibration: Corpus,
    open_: Open,
) -> Plan:
    stage, named = recipe.prune, find_plan(name, "sparsity")
    opened = open_(recipe.model)
    if named.searched:
        path = folder.path / "marginal.json"
        check_unedited(path)
        return search_into(
            path,
            *opened,
            recipe.sparsity.target,
            calibration=calibration,
            options=stage.part(SearchOptions).but(
                rounds=recipe.sparsity.rounds,
                tokens=recipe.sparsity.round_tokens,
                held_out_tokens=recipe.sparsity.round_tokens,
            ),
            overwrite=True,
        )

    def scores(metric: str | None, options: Mapping[str, Any]) -> LayerScores | MetricScores:
        if metric in (None, INFLUENCE):
            return influence
        return measure_into(
            folder.path / f"{metric}.json",
            *opened,
            metric,
            on=calibration,
            options=stage.part(MeasureOptions),
            of_metric=dict(options),
            overwrite=True,
        )

    plan = named.plans("sparsity", recipe.sparsity.target, scores)[0]
    folder.keep_plan(name, plan)
    return plan
