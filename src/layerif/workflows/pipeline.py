"""Follow a recipe: score, plan, prune by the plan and uniformly, measure all three models, and
compare the two plans on the same items; and where it asks for that, train the plan of experts.

Each result carries the fingerprint of what it was made from, so that nothing finished is done
twice, a changed option redoes just what depends on it, and a run that was cut short goes on after
its last finished step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from layerif.artifacts import SCORES, Comparisons, LayerScores, Plan, Results
from layerif.compress.pruning.options import PruneOptions
from layerif.compress.pruning.targets import check_pattern
from layerif.core.progress import note, progress
from layerif.data import (
    Corpus,
    Example,
    SelfText,
    Task,
    load_calibration,
    load_sources,
    load_task,
)
from layerif.data.chunks import check_context_length, cut, draw, usable_length
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError
from layerif.evaluation.comparison import compare
from layerif.evaluation.evaluate import check_sources
from layerif.evaluation.options import EvaluateOptions
from layerif.influence.options import ScoreOptions
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe, open_model, open_skeleton, open_tokenizer, parse_device
from layerif.model.peft_adapters import with_adapter
from layerif.plans.allocate import allocate
from layerif.report.plots import leave_picture, plot_plan, plot_scores
from layerif.workflows.beside import Open, check_beside, plans_beside
from layerif.workflows.compare_experts import Cells
from layerif.workflows.folder import RunFolder
from layerif.workflows.recipe import EvaluateStage, Recipe, ScoreStage
from layerif.workflows.stages import evaluate_into, prune_into, score_into
from layerif.workflows.trained import check_finetuning, trained_plans

COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True)
class _Data:
    """Everything the recipe needs beside the model, loaded before the first stage."""

    task: Task
    train: list[Example]
    validation: list[Example]
    calibration: Corpus | SelfText
    sources: list[Task | Corpus]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a recipe came to.

    Attributes:
        pruned: results of the dense model, of uniform pruning, of the plans beside, and of pruning
            by LayerIF's plan.
        trained: what the plans of experts came to; empty without the stage `finetune`.
    """

    pruned: dict[str, Results]
    trained: dict[str, Cells]


def run_recipe(
    recipe: Recipe, *, cache: Path | None = None, trust_remote_code: bool = False
) -> Outcome:
    """Carry out a recipe in its run folder.

    The folder ends with `comparison.json`: each plan beside the uniform one, item by item.

    Args:
        recipe: what to do; changed since the folder was written, just what depends on the change
            is done again.
        cache: where likelihoods are kept, see `evaluate`.
        trust_remote_code: run code that comes with the model, which no recipe can ask for.

    Raises:
        InputError: something the recipe asks for cannot be had, found before the first stage; or
            the folder holds something else, or a plan that was edited.
        NumericalError: a loss is not finite.
    """
    folder = RunFolder(Path(recipe.out))
    folder.check()
    data = _load(recipe, trust_remote_code)
    _check(recipe, data, trust_remote_code)
    opened = partial(
        open_model,
        dtype=recipe.dtype,
        device=recipe.device,
        trust_remote_code=trust_remote_code,
    )
    with folder.claimed(recipe.text()):
        scores = _score(recipe, folder.path, data, opened)
        allocations = _plan(recipe, folder, scores)
        plan, uniform = allocations["sparsity"], allocations["uniform"]
        measure = partial(_measure, recipe, folder.path, data, cache, opened)
        plans = {"uniform": uniform}
        if isinstance(data.calibration, Corpus):
            plans |= plans_beside(recipe, folder, scores, data.calibration, opened)
        plans["LayerIF"] = plan
        results = {"dense": measure(name="dense", plan=None)}
        with progress("plans", len(plans), bar=False) as advance:
            for title, each in plans.items():
                results[title] = measure(name=title.lower(), plan=each)
                advance()
        # What a run asks is whether a plan pays; that pruning costs, nobody doubts.
        pruned = {title: results[title] for title in plans}
        comparisons = Comparisons(comparisons=compare(pruned, "uniform"))
        comparisons.save(folder.path / COMPARISON_FILE)
        experts = allocations.get("experts")
        trained = {}
        if experts is not None:
            trained = trained_plans(recipe, folder.path, data.task, scores, experts, opened)
    return Outcome(results, trained)


def _load(recipe: Recipe, trust_remote_code: bool) -> _Data:
    seed, stage = recipe.seed, recipe.score
    data_dir = None if recipe.data_dir is None else Path(recipe.data_dir)
    styles = {stage.style, recipe.evaluate.style}
    tokenizer = None
    if "chat" in styles:
        tokenizer = open_tokenizer(recipe.model, trust_remote_code=trust_remote_code)

    def words(of: ScoreStage | EvaluateStage) -> dict[str, Any]:
        options = of.template_options
        return {"style": of.style, "tokenizer": tokenizer, "template_options": options}

    task = load_task(stage.task, data_dir=data_dir, **words(stage))

    return _Data(
        task=task,
        train=stage.rows(task, "train", seed),
        validation=stage.rows(task, "validation", seed),
        calibration=load_calibration(recipe.prune.calibration, data_dir=data_dir, **words(stage)),
        sources=load_sources(recipe.evaluate.tasks, data_dir=data_dir, **words(recipe.evaluate)),
    )


def _check(recipe: Recipe, data: _Data, trust_remote_code: bool) -> None:
    """Everything that can be found out before the first stage, with no weights."""
    parse_device(recipe.device)
    recipe.score.check(recipe.score.adapter)
    check_beside(recipe, data.calibration)
    bare = partial(open_skeleton, recipe.model, trust_remote_code=trust_remote_code)
    tokenizer = open_tokenizer(recipe.model, trust_remote_code=trust_remote_code)
    skeleton = bare()
    layers = describe(skeleton).layers
    for kind, stage in (("experts", recipe.experts), ("ranks", recipe.ranks)):
        if stage is not None and stage.total < layers:
            raise InputError(
                f"the recipe asks for {stage.total} {kind}, fewer than the {layers} decoder layers "
                f"of {recipe.model}, each of which needs one; ask for {layers} or more"
            )
    check_finetuning(recipe, skeleton, tokenizer, data.task)
    max_length = usable_length(skeleton, recipe.score.max_length)
    encode_samples(tokenizer, data.train, max_length, "training")
    encode_samples(tokenizer, data.validation, max_length, "validation")
    if recipe.calibrates:
        check_context_length(skeleton, recipe.prune.context_length)
    if recipe.calibrates and isinstance(data.calibration, Corpus):
        text = data.calibration.text("calibration")
        draw(
            cut(tokenizer, text, recipe.prune.context_length),
            recipe.prune.calibration_samples,
            recipe.seed,
        )
    if recipe.prune.nm is not None:
        check_pattern(find_decoder_layers(skeleton).projections, recipe.prune.nm)
    if recipe.score.adapter is not None:
        with_adapter(bare(), Path(recipe.score.adapter), recipe.score.adapter_name)
    check_sources(skeleton, tokenizer, data.sources, options=recipe.evaluate.part(EvaluateOptions))


def _score(recipe: Recipe, folder: Path, data: _Data, opened: Open) -> LayerScores:
    stage = recipe.score
    note(f"scores: {len(data.train)} + {len(data.validation)} samples of {data.task.name}")
    model, tokenizer = opened(recipe.model, adapter=stage.adapter, adapter_name=stage.adapter_name)
    return score_into(
        folder,
        model,
        tokenizer,
        data.task,
        train=data.train,
        validation=data.validation,
        options=stage.part(ScoreOptions),
        overwrite=True,
    )


def _plan(recipe: Recipe, folder: RunFolder, scores: LayerScores) -> dict[str, Plan]:
    """The plans of `sparsity`, of it `uniform`, and of `experts` and `ranks` if asked for."""
    stage = recipe.sparsity
    plan = allocate(
        scores,
        "sparsity",
        stage.target,
        aggregate=stage.aggregate,
        epsilon=stage.epsilon,
        smooth=stage.smooth,
        orientation=stage.orientation,
    )
    uniform = allocate(scores, "sparsity", stage.target, map="uniform")
    plans = {"sparsity": plan, "uniform": uniform}
    for name, counts in (("experts", recipe.experts), ("ranks", recipe.ranks)):
        if counts is not None:
            plans[name] = allocate(scores, name, **counts.model_dump())
    scored = folder.path / SCORES.mark
    leave_picture(plot_scores, scores, beside=scored, aggregate=stage.aggregate)
    for name, allocation in plans.items():
        folder.keep_plan(name, allocation)
        if name != "uniform":
            leave_picture(plot_plan, allocation, beside=folder.path / f"{name}.json")
    return plans


def _measure(
    recipe: Recipe,
    folder: Path,
    data: _Data,
    cache: Path | None,
    opened: Open,
    *,
    name: str,
    plan: Plan | None,
) -> Results:
    """Results of the model pruned by `plan` (dense for None), as it stands on disk."""
    measured = recipe.model
    if plan is not None:
        note(f"{name}: pruning")
        measured = str(folder / ("pruned" if name == "layerif" else f"pruned-{name}"))
        stage = recipe.prune
        prune_into(
            Path(measured),
            *opened(recipe.model),
            plan,
            calibration=data.calibration,
            options=stage.part(PruneOptions),
            overwrite=True,
        )
    note(f"{name}: evaluating")
    return evaluate_into(
        folder / f"{name}-results.json",
        *opened(measured),
        data.sources,
        options=recipe.evaluate.part(EvaluateOptions),
        cache=cache,
        overwrite=True,
    )
