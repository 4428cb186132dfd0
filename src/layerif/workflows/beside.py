"""Plans that a recipe measures beside LayerIF's and the uniform one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layerif.artifacts import Allocation
from layerif.core.choices import BesidePlan
from layerif.core.progress import note
from layerif.data import Corpus, SelfText
from layerif.errors import InputError
from layerif.search.options import SearchOptions
from layerif.workflows.candidates import WAYS, plans_of
from layerif.workflows.folder import RunFolder
from layerif.workflows.recipe import Recipe
from layerif.workflows.searching import check_unedited, search_into
from layerif.workflows.stages import measure_into

# Opens a model and its tokenizer as the recipe asks.
Open = Callable[..., tuple[Any, Any]]

TITLES: dict[BesidePlan, str] = {
    "alphapruning": "AlphaPruning",
    "owl": "OWL",
    "dlp": "DLP",
    "random": "random",
    "marginal": "marginal",
}


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
    recipe: Recipe, folder: RunFolder, calibration: Corpus, open_: Open
) -> dict[str, Allocation]:
    """The plans by their titles, each with its authors' own parameter."""
    return {
        TITLES[name]: _plan(recipe, folder, name, calibration, open_)
        for name in recipe.sparsity.beside
    }


def _plan(
    recipe: Recipe, folder: RunFolder, name: BesidePlan, calibration: Corpus, open_: Open
) -> Allocation:
    stage = recipe.prune
    note(f"{TITLES[name]}: the plan")
    opened = open_(recipe.model)
    text: dict[str, Any] = {
        "samples": stage.samples,
        "context_length": stage.context_length,
        "batch_tokens": stage.batch_tokens,
    }
    if name == "marginal":
        path = folder.path / "marginal.json"
        check_unedited(path)
        return search_into(
            path,
            *opened,
            recipe.sparsity.target,
            calibration=calibration,
            options=SearchOptions(
                **text,
                method=stage.method,
                rounds=recipe.sparsity.rounds,
                tokens=recipe.sparsity.round_tokens,
                held_out_tokens=recipe.sparsity.round_tokens,
                seed=recipe.seed,
            ),
            overwrite=True,
        )
    metric = WAYS[name].metric
    assert metric is not None
    scores = measure_into(
        folder.path / f"{metric}.json",
        *opened,
        metric,
        calibration=calibration,
        seed=recipe.seed,
        text_options=text,
        options={},
        overwrite=True,
    )
    plan = plans_of(name, lambda _options: scores, recipe.sparsity.target, tries=1)[0]
    folder.keep_plan(name, plan)
    return plan
