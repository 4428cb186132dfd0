"""Follow a recipe: score, plan, prune by the plan and uniformly, measure all three models.

Each stage ends with a file, written whole, and a stage whose file stands is not done again: a run
that was cut short goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from layerif.allocate import allocate_experts, allocate_sparsity
from layerif.artifacts import Allocation, LayerScores, Results
from layerif.artifacts.scores import SCORES_FILE
from layerif.errors import InputError
from layerif.evaluation import evaluate
from layerif.influence import score
from layerif.model import describe, open_model, open_skeleton, open_tokenizer
from layerif.progress import note
from layerif.pruning import prune, save_pruned
from layerif.report import plot_allocation, plot_scores
from layerif.runs import write_text
from layerif.studies.recipe import Recipe
from layerif.tasks import Corpus, Example, Task, load_corpus, load_sources, load_task

RECIPE_FILE = "recipe.yaml"


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

    Returns:
        The results of the dense model, of uniform pruning and of pruning by LayerIF's plan.

    Raises:
        InputError: something the recipe asks for cannot be had, found before the first stage; or
            the folder holds something else.
        NumericalError: a loss is not finite.
    """
    folder = Path(recipe.out)
    _check_folder(folder, recipe)
    data = _load(recipe, data_dir)
    _check_experts(recipe)
    write_text(folder / RECIPE_FILE, recipe.text())

    scores = _score(recipe, folder, data)
    plan, uniform = _plan(recipe, folder, scores)
    plot_scores(scores, folder / "scores", aggregate=recipe.sparsity.aggregate)
    return {
        "dense": _measure(recipe, folder, data, "dense", None),
        "uniform": _measure(recipe, folder, data, "uniform", uniform),
        "LayerIF": _measure(recipe, folder, data, "layerif", plan),
    }


def _check_folder(folder: Path, recipe: Recipe) -> None:
    """An empty or absent folder, or one that holds a run of the very same recipe."""
    path = folder / RECIPE_FILE
    if path.is_file():
        if path.read_text(encoding="utf-8") != recipe.text():
            raise InputError(
                f"{folder} holds the run of another recipe (see {path}); choose another folder "
                "with --out, or remove that one"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} already holds something that is no run of a recipe; choose another folder "
            "with --out"
        )


def _load(recipe: Recipe, data_dir: Path | None) -> _Data:
    seed, stage = recipe.seed, recipe.score
    styles = {stage.style, recipe.evaluate.style}
    tokenizer = open_tokenizer(recipe.model) if "chat" in styles else None
    task = load_task(stage.task, data_dir=data_dir, style=stage.style, tokenizer=tokenizer)
    data = _Data(
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
    for source in data.sources:
        if isinstance(source, Task):
            source.sample("test", recipe.evaluate.samples, seed)
    return data


def _check_experts(recipe: Recipe) -> None:
    layers = describe(open_skeleton(recipe.model)).layers
    if recipe.experts is not None and recipe.experts.total < layers:
        raise InputError(
            f"the recipe asks for {recipe.experts.total} experts, fewer than the {layers} decoder "
            f"layers of {recipe.model}, each of which needs one; ask for {layers} or more"
        )


def _score(recipe: Recipe, folder: Path, data: _Data) -> LayerScores:
    if (folder / SCORES_FILE).is_file():
        note(f"scores: found in {folder}")
        return LayerScores.load(folder)
    stage = recipe.score
    note(f"scores: {len(data.train)} + {len(data.validation)} samples of {data.task.name}")
    model, tokenizer = open_model(recipe.model, dtype=recipe.dtype, device=recipe.device)
    scores = score(
        model,
        tokenizer,
        data.train,
        data.validation,
        rank=stage.rank,
        alpha=stage.alpha,
        damping=stage.damping,
        max_length=stage.max_length,
        seed=recipe.seed,
        batch_tokens=stage.batch_tokens,
        task={"name": data.task.name, **data.task.origin},
    )
    scores.save(folder)
    return scores


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
        allocation.save(folder / f"{name}.json")
        if name != "uniform":
            plot_allocation(allocation, folder / name)
    return plan, uniform


def _measure(
    recipe: Recipe, folder: Path, data: _Data, name: str, plan: Allocation | None
) -> Results:
    """Results of the model pruned by `plan` (dense for None), from the folder where they stand."""
    path = folder / f"{name}-results.json"
    if path.is_file():
        note(f"{name}: results found in {folder}")
        return Results.load(path)
    note(f"{name}: " + ("evaluating" if plan is None else "pruning and evaluating"))
    model, tokenizer = open_model(recipe.model, dtype=recipe.dtype, device=recipe.device)
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
