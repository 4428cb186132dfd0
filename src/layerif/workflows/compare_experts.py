"""Several plans of experts on one model and task: trained alike, measured on the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerif.adapters import trainable_parameters
from layerif.artifacts import Comparisons, Finetuning, LayerScores, Plan, Results, hash_texts
from layerif.core.checkpoint import Steps
from layerif.core.files import require_disk, taken
from layerif.core.progress import note, progress
from layerif.data import Task
from layerif.errors import InputError
from layerif.evaluation.comparison import compare_seeds, figures_of
from layerif.evaluation.evaluate import check_sources, evaluate
from layerif.evaluation.options import EvaluateOptions
from layerif.finetuning.finetune import complete_plan
from layerif.finetuning.options import FinetuneOptions
from layerif.metrics.measuring import metric_scores
from layerif.model.layers import unwrapped
from layerif.model.modes import as_found
from layerif.model.opening import Tokenizer, describe
from layerif.model.peft_adapters import with_adapter
from layerif.plans.named import INFLUENCE, Scorer, check_influence, find_plan
from layerif.workflows.bench import COMPARISON_FILE
from layerif.workflows.finetuning import finetune_into
from layerif.workflows.folder import RunFolder
from layerif.workflows.options import ExpertsStudy
from layerif.workflows.stage import content_of, json_stage

STUDY = "compare experts"
CELLS = "cells"
BASELINE = "uniform"


def check_titles(names: Iterable[str]) -> list[str]:
    """What each plan is called in tables and files, in order.

    Raises:
        InputError: two would be called the same, capitals aside (some disks take no notice of
            them), and the results of one would be taken for the other's.
    """
    titles: dict[str, tuple[str, str]] = {}
    for name in names:
        title = Path(name).stem if name.endswith(".json") else name
        other, _ = titles.setdefault(title.lower(), (name, title))
        if other != name:
            raise InputError(
                f"the plans {other} and {name} would both be called {title} in tables and files; "
                "give the file another name"
            )
    return [title for _, title in titles.values()]


def check_plans(
    names: Iterable[str], total: int, *, model: Any, options: FinetuneOptions, scored: bool = True
) -> None:
    """Refuse beforehand a name that no plan has, a file of another total, influence without scores.

    Args:
        names, total: as `plans_of`.
        model: that adapters are for; a skeleton without weights will do.
        options: that they are trained with.
        scored: whether there is influence, or will be.

    Raises:
        InputError: as `plans_of`, but for what scores bring; or as `complete_plan`.
    """
    rising = range(describe(model).layers)  # in place of scores that are not measured yet
    for plan in plans_of(names, total, lambda *_: rising, options.rank).values():
        complete_plan(model, plan, options)
    if not scored:
        check_influence((name for name in names if not name.endswith(".json")), "experts")


def plans_of(names: Iterable[str], total: int, scores: Scorer, rank: int) -> dict[str, Plan]:
    """The plans of experts by name, all of one total, and first the uniform one.

    Args:
        names: of plans that are compared with it, or files ending in .json.
        total: experts of all layers together.
        scores: makes the scores, as `scorer`.
        rank: of each expert.

    Raises:
        InputError: no such plan, or one of another total.
    """
    return {n: _plan(n, total, scores, rank) for n in dict.fromkeys((BASELINE, *names))}


def _plan(name: str, total: int, scores: Scorer, rank: int) -> Plan:
    if not name.endswith(".json"):
        try:
            named = find_plan(name, "experts")
        except InputError as error:
            raise InputError(f"{error}, or a .json file of a plan") from None
        return named.plans("experts", total, scores, rank=rank)[0]
    plan = Plan.load(Path(name))
    ranks = plan.rules.ranks
    if ranks is None or sum(ranks(plan.allocation, rank)) != total * rank:
        raise InputError(
            f"the plan {name} has {plan.kind} of {plan.realised_total:g} in all; plans are "
            f"compared at equal parameters: expected {total} experts, or ranks of {total * rank}"
        )
    return plan


def scorer(model: Any, influence: LayerScores | None, seed: int) -> Scorer:
    """What makes the scores of a model by metric; influence is made already."""
    nothing = [0.0] * describe(model).layers

    def scores(metric: str | None, own: Mapping[str, Any]) -> Any:
        if metric == INFLUENCE:
            return influence
        return nothing if metric is None else metric_scores(model, metric, seed=seed, **own)

    return scores


@dataclass(frozen=True, eq=False)
class Cells:
    """What one plan came to, seed by seed.

    Attributes:
        plan: what was trained.
        records: how training went.
        results: of the test rows.
    """

    plan: Plan
    records: list[Finetuning]
    results: list[Results]

    @property
    def trainable_parameters(self) -> int:
        """What is trained of the model."""
        return self.records[0].trainable_parameters

    @property
    def figures(self) -> list[tuple[str, str, list[float]]]:
        """(task, metric, one value a seed)."""
        return [(f.name, f.metric, f.by_seed.tolist()) for f in figures_of(self.results)]


def compare_experts(
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    plans: Mapping[str, Plan],
    study: ExpertsStudy,
    *,
    task: Task,
) -> dict[str, Cells]:
    """Train each plan with each seed, measure on test rows, and compare all with the uniform one.

    The folder gets each plan, each adapter with its record, its results, and `comparison.json`.
    What is finished there is not done again.

    Args:
        model: a causal LM of transformers without adapters, left so.
        plans: by name, `uniform` among them.
        study: how all are trained and measured.

    Raises:
        InputError: as `finetune`, `evaluate` and `check_titles`, or there are too few rows; or the
            folder holds something else, or a plan that was edited.
        NumericalError: a loss or a likelihood is not finite.
    """
    titles = check_titles(plans)
    model = unwrapped(model)
    how, options = study.part(FinetuneOptions), study.measuring
    for plan in plans.values():
        complete_plan(model, plan, how)
    check_sources(model, tokenizer, [task], options=options)
    train, validation = study.rows(task, study.seed)
    counts = [trainable_parameters(p, model, rank=study.rank).sum() for p in plans.values()]
    size = 4 * len(study.seeds) * int(sum(counts))
    cells = folder / CELLS
    require_disk(folder, size - taken(cells), "the adapters of all plans and seeds")
    claimed = RunFolder(folder, STUDY)
    found: dict[str, Cells] = {}
    runs = len(plans) * len(study.seeds)
    with claimed.claimed(), progress("training runs", runs, bar=False) as advance:
        for title, plan in zip(titles, plans.values(), strict=True):
            claimed.keep_plan(title, plan)
            own = found[title] = Cells(plan, [], [])
            for seed in study.seeds:
                note(f"{title}, seed {seed}")
                cell = cells / f"{title}-{seed}"
                record = finetune_into(
                    cell,
                    model,
                    tokenizer,
                    task,
                    train=train,
                    validation=validation,
                    plan=plan,
                    options=how.but(seed=seed),
                    overwrite=True,
                )
                own.records.append(record)
                own.results.append(_measured(cell, record, model, tokenizer, task, options))
                advance()
        results = {name: own.results for name, own in found.items()}
        compared = Comparisons(comparisons=compare_seeds(results, BASELINE))
        compared.save(folder / COMPARISON_FILE)
    return found


def _measured(
    cell: Path,
    record: Finetuning,
    model: Any,
    tokenizer: Tokenizer,
    task: Task,
    options: EvaluateOptions,
) -> Results:
    """Results of the adapter in a cell, beside it; reused where they exist."""
    path = cell.with_name(f"{cell.name}-results.json")
    trained = record.fingerprint
    assert trained is not None
    wanted = trained.model_copy(
        update={
            "data": hash_texts(content_of(task, options)),
            "options": {"adapter": trained.model_dump(mode="json"), **options.values()},
        }
    )

    def work(_steps: Steps) -> Results:
        with as_found(model):
            return evaluate(with_adapter(model, cell), tokenizer, [task], options=options)

    return json_stage(path, wanted, Results, work, overwrite=True)
