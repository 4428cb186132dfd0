"""Follow a recipe: score, plan, prune by the plan and uniformly, measure all three models,
and compare the two plans on the same items.

Each stage ends with a file, written whole, and a stage whose file stands is not done again: a run
that was cut short goes on from there, and within a stage after its last finished step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from layerif.allocate import allocate_experts, allocate_sparsity
from layerif.artifacts import Allocation, Comparisons, LayerScores, Results
from layerif.artifacts.scores import SCORES_FILE
from layerif.checkpoint import (
    FINGERPRINT_FILE,
    Fingerprint,
    differences,
    hash_model,
    hash_texts,
    resumable,
)
from layerif.chunks import check_context_length, cut, draw, usable_length
from layerif.errors import InputError
from layerif.evaluation import check_sources, compare, evaluate
from layerif.influence import check_samples
from layerif.model import (
    describe,
    open_model,
    open_skeleton,
    open_tokenizer,
    parse_device,
    setting,
)
from layerif.progress import note
from layerif.pruning import prune, save_pruned
from layerif.report import plot_allocation, plot_scores
from layerif.runs import read_json, write_json, write_text
from layerif.studies.recipe import Recipe
from layerif.studies.stages import score_into
from layerif.tasks import Corpus, Example, Task, load_corpus, load_sources, load_task

RECIPE_FILE = "recipe.yaml"
COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True)
class _Data:
    """Everything the recipe needs beside the model, loaded before the first stage."""

    task: Task
    train: list[Example]
    validation: list[Example]
    calibration: Corpus
    sources: list[Task | Corpus]


def run_recipe(recipe: Recipe, *, data_dir: Path | None = None) -> dict[str, Results]:
    """Carry out a recipe in its run folder.

    The folder ends with `comparison.json`: LayerIF's plan beside the uniform one, item by item.

    Returns:
        The results of the dense model, of uniform pruning and of pruning by LayerIF's plan.

    Raises:
        InputError: something the recipe asks for cannot be had, found before the first stage; or
            the folder holds something else.
        NumericalError: a loss is not finite.
    """
    folder = Path(recipe.out)
    data = _load(recipe, data_dir)
    _check(recipe, data)
    fingerprint = _fingerprint(recipe, data)
    _claim(folder, recipe, fingerprint)

    scores = _score(recipe, folder, data)
    plan, uniform = _plan(recipe, folder, scores)
    plot_scores(scores, folder / "scores", aggregate=recipe.sparsity.aggregate)
    measure = partial(_measure, recipe, folder, data, fingerprint)
    results = {
        "dense": measure(name="dense", plan=None),
        "uniform": measure(name="uniform", plan=uniform),
        "LayerIF": measure(name="layerif", plan=plan),
    }
    # What a run asks is whether the plan pays; that pruning costs, nobody doubts.
    plans = {name: results[name] for name in ("LayerIF", "uniform")}
    Comparisons(comparisons=compare(plans, "uniform")).save(folder / COMPARISON_FILE)
    return results


def _claim(folder: Path, recipe: Recipe, fingerprint: Fingerprint) -> None:
    """Take an empty or absent folder, or one that holds a run of the very same work."""
    path = folder / FINGERPRINT_FILE
    if path.is_file():
        found = read_json(path, "the fingerprint of a run")
        if found != fingerprint.as_json():
            raise InputError(
                f"{folder} holds another run: {differences(found, fingerprint.as_json())}; choose "
                "another folder with --out, or remove that one"
            )
    elif folder.exists() and not (folder.is_dir() and all(map(_is_hidden, folder.iterdir()))):
        raise InputError(
            f"{folder} already holds something that is no run of a recipe; choose another folder "
            "with --out"
        )
    else:
        write_json(path, fingerprint.as_json())
    write_text(folder / RECIPE_FILE, recipe.text())


def _is_hidden(path: Path) -> bool:
    """What a killed process leaves half-written has such a name."""
    return path.name.startswith(".")


def _fingerprint(recipe: Recipe, data: _Data) -> Fingerprint:
    """All that the run depends on; where it is kept is no part of it."""
    model, _ = open_model(recipe.model, dtype=recipe.dtype, device=recipe.device)
    origins = [data.task.origin, data.calibration.origin, *(s.origin for s in data.sources)]
    options = {**recipe.model_dump(mode="json", exclude={"out"}), **setting(model).model_dump()}
    return Fingerprint(hash_model(model), hash_texts(origins), options)


def _load(recipe: Recipe, data_dir: Path | None) -> _Data:
    seed, stage = recipe.seed, recipe.score
    styles = {stage.style, recipe.evaluate.style}
    tokenizer = open_tokenizer(recipe.model) if "chat" in styles else None
    task = load_task(stage.task, data_dir=data_dir, style=stage.style, tokenizer=tokenizer)
    return _Data(
        task=task,
        train=task.sample("train", stage.train_samples, seed),
        validation=task.sample("validation", stage.validation_samples, seed),
        calibration=load_corpus(recipe.prune.calibration, data_dir=data_dir),
        sources=load_sources(
            recipe.evaluate.tasks,
            data_dir=data_dir,
            style=recipe.evaluate.style,
            tokenizer=tokenizer,
        ),
    )


def _check(recipe: Recipe, data: _Data) -> None:
    """Everything that can be found out before the first stage, with no weights."""
    parse_device(recipe.device)
    skeleton, tokenizer = open_skeleton(recipe.model), open_tokenizer(recipe.model)
    layers = describe(skeleton).layers
    if recipe.experts is not None and recipe.experts.total < layers:
        raise InputError(
            f"the recipe asks for {recipe.experts.total} experts, fewer than the {layers} decoder "
            f"layers of {recipe.model}, each of which needs one; ask for {layers} or more"
        )
    max_length = usable_length(skeleton, recipe.score.max_length)
    check_samples(tokenizer, data.train, max_length, "training")
    check_samples(tokenizer, data.validation, max_length, "validation")
    check_context_length(skeleton, recipe.prune.context_length)
    text = data.calibration.text("calibration")
    draw(cut(tokenizer, text, recipe.prune.context_length), recipe.prune.samples, recipe.seed)
    check_sources(
        skeleton,
        tokenizer,
        data.sources,
        samples=recipe.evaluate.samples,
        seed=recipe.seed,
        context_length=recipe.evaluate.context_length,
        max_tokens=recipe.evaluate.max_tokens,
    )


def _score(recipe: Recipe, folder: Path, data: _Data) -> LayerScores:
    if (folder / SCORES_FILE).is_file():
        note(f"scores: found in {folder}")
        return LayerScores.load(folder)
    stage = recipe.score
    note(f"scores: {len(data.train)} + {len(data.validation)} samples of {data.task.name}")
    model, tokenizer = open_model(recipe.model, dtype=recipe.dtype, device=recipe.device)
    return score_into(
        folder,
        model,
        tokenizer,
        data.task,
        train=data.train,
        validation=data.validation,
        options={
            "rank": stage.rank,
            "alpha": stage.alpha,
            "estimator": stage.estimator,
            "damping": stage.damping,
            "damping_value": stage.damping_value,
            "block": stage.block,
            "tolerance": stage.tolerance,
            "max_iterations": stage.max_iterations,
            "seed": recipe.seed,
            "max_length": stage.max_length,
            "batch_tokens": stage.batch_tokens,
        },
    )


def _plan(recipe: Recipe, folder: Path, scores: LayerScores) -> tuple[Allocation, Allocation]:
    """The sparsity plan and the uniform one; the plan of experts is only written."""
    stage = recipe.sparsity
    plan = allocate_sparsity(
        scores,
        stage.target,
        aggregate=stage.aggregate,
        epsilon=stage.epsilon,
        smooth=stage.smooth,
        orientation=stage.orientation,
    )
    uniform = allocate_sparsity(scores, stage.target, map="uniform")
    plans = {"sparsity": plan, "uniform": uniform}
    if recipe.experts is not None:
        plans["experts"] = allocate_experts(
            scores,
            recipe.experts.total,
            aggregate=recipe.experts.aggregate,
            beta=recipe.experts.beta,
            orientation=recipe.experts.orientation,
        )
    for name, allocation in plans.items():
        path = folder / f"{name}.json"
        if path.is_file() and Allocation.load(path) != allocation:
            raise InputError(
                f"{path} is not the plan that this recipe makes; a recipe follows its own plans: "
                "carry yours out with `layerif prune --plan`, and move it out of this folder"
            )
        allocation.save(path)
        if name != "uniform":
            plot_allocation(allocation, folder / name)
    return plan, uniform


def _measure(
    recipe: Recipe,
    folder: Path,
    data: _Data,
    fingerprint: Fingerprint,
    *,
    name: str,
    plan: Allocation | None,
) -> Results:
    """Results of the model pruned by `plan` (dense for None), from the folder where they stand."""
    path = folder / f"{name}-results.json"
    if path.is_file():
        note(f"{name}: results found in {folder}")
        return Results.load(path)
    note(f"{name}: " + ("evaluating" if plan is None else "pruning and evaluating"))
    model, tokenizer = open_model(recipe.model, dtype=recipe.dtype, device=recipe.device)
    wanted = {"plan": None if plan is None else plan.allocation, **fingerprint.options}
    with resumable(path, replace(fingerprint, options=wanted)) as steps:
        if plan is not None:
            manifest = prune(
                model,
                plan,
                tokenizer=tokenizer,
                calibration=data.calibration,
                method=recipe.prune.method,
                samples=recipe.prune.samples,
                context_length=recipe.prune.context_length,
                seed=recipe.seed,
                batch_tokens=recipe.prune.batch_tokens,
                steps=steps,
            )
            manifest.save(folder / f"{name}-manifest.json")
            if name == "layerif":
                save_pruned(model, tokenizer, manifest, folder / "pruned")
        stage = recipe.evaluate
        results = evaluate(
            model,
            tokenizer,
            data.sources,
            samples=stage.samples,
            seed=recipe.seed,
            max_length=stage.max_length,
            context_length=stage.context_length,
            max_tokens=stage.max_tokens,
            batch_tokens=stage.batch_tokens,
        )
        results.save(path)
    return results
