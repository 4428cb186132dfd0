"""A recipe's expert plan, trained beside others on the task that the layers were scored on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerif.artifacts import LayerScores, Plan
from layerif.core.progress import note
from layerif.data import Task
from layerif.errors import InputError
from layerif.evaluation.evaluate import check_sources
from layerif.finetuning.finetune import encoded_rows
from layerif.finetuning.options import FinetuneOptions
from layerif.model.opening import Tokenizer
from layerif.workflows.beside import Open
from layerif.workflows.compare_experts import (
    Cells,
    check_plans,
    check_titles,
    compare_experts,
    names_of,
    plans_of,
    scorer,
)
from layerif.workflows.options import ExpertsStudy
from layerif.workflows.recipe import Recipe

FOLDER = "finetuned"
TITLE = "LayerIF"


def check_finetuning(recipe: Recipe, skeleton: Any, tokenizer: Tokenizer, task: Task) -> None:
    """Refuse what cannot be trained or measured, before the first stage.

    Raises:
        InputError: there is no plan of experts, too few rows or none that fits, or no such plan.
    """
    stage = recipe.finetune
    if stage is None:
        return
    if recipe.experts is None:
        raise InputError(
            "the recipe fine-tunes by a plan of experts and makes none; add the stage `experts`, "
            "or leave `finetune` out"
        )
    check_titles([*names_of(stage.plans), TITLE])
    options = stage.part(FinetuneOptions)
    check_plans(names_of(stage.plans), recipe.experts.total, model=skeleton, options=options)
    train, validation = stage.rows(task, recipe.seed)
    encoded_rows(skeleton, tokenizer, train, validation, options)
    check_sources(skeleton, tokenizer, [task], options=stage.measuring)


def trained_plans(
    recipe: Recipe, folder: Path, task: Task, scores: LayerScores, plan: Plan, open_: Open
) -> dict[str, Cells]:
    """What each plan came to, LayerIF's last; nothing without the stage `finetune`.

    Raises:
        InputError, NumericalError: as `compare_experts`.
    """
    stage = recipe.finetune
    if stage is None or recipe.experts is None:
        return {}
    note("fine-tuning")
    model, tokenizer = open_(recipe.model)
    scored = scorer(model, scores, recipe.seed)
    plans = plans_of(names_of(stage.plans), recipe.experts.total, scored, stage.rank)
    return compare_experts(
        folder / FOLDER,
        model,
        tokenizer,
        {**plans, TITLE: plan},
        stage.part(ExpertsStudy),
        task=task,
    )
