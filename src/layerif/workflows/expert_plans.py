"""The plans of experts that a comparison trains, by name; all of one total."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from layerif.artifacts import Allocation, LayerScores, MetricScores
from layerif.errors import InputError
from layerif.finetuning.attaching import complete_plan
from layerif.finetuning.options import FinetuneOptions
from layerif.model.opening import describe
from layerif.plans.allocate import allocate_experts
from layerif.plans.maps import equal_rank

# Plans by a metric's scores, and their map: AlphaLoRA's takes the alphas as they are, to its
# authors' power (arXiv 2410.10054).
METRICS: dict[str, tuple[str, dict[str, Any]]] = {
    "alphalora": ("pl_alpha", {"beta": 2.5, "normalise": "none"}),
    "random": ("random", {}),
}
NAMES = "uniform, layerif, alphalora, mola-2468, mola-5555, mola-8642, random, lora"
NO_INFLUENCE = (
    "the plan layerif is made from influence: give --scores, a run folder of `layerif score`, or "
    "leave the plan out"
)

Scores = Callable[[str], MetricScores]


def expert_plan(
    name: str,
    total: int,
    *,
    rank: int,
    metric: Scores,
    influence: LayerScores | None,
    layers: int,
) -> Allocation:
    """The plan of a name, or of a file ending in .json.

    Args:
        name: one of `NAMES`; `mola-` takes any digits, one a group of layers; `lora` is plain LoRA
            of equal total rank.
        total: experts of all layers together.
        rank: of each.
        metric: makes the scores of a metric.
        influence: scores for the plan `layerif`.
        layers: of the model.

    Raises:
        InputError: no such plan, one of another total, or the plan has not what it needs.
    """
    if name.endswith(".json"):
        return _read(Path(name), total, rank)
    if name == "layerif":
        if influence is None:
            raise InputError(NO_INFLUENCE)
        return allocate_experts(influence, total)
    if name in METRICS:
        of_metric, of_map = METRICS[name]
        return allocate_experts(metric(of_metric), total, **of_map)
    return _by_depth(name, total, rank, layers)


def _by_depth(name: str, total: int, rank: int, layers: int) -> Allocation:
    """A plan that no score has a say in."""
    nothing = [0.0] * layers
    group, _, shape = name.partition("-")
    if group == "mola" and shape.isdigit():
        groups = [int(digit) for digit in shape]
        return allocate_experts(nothing, total, map="mola", shape=groups)
    uniform = allocate_experts(nothing, total, map="uniform")
    if name == "uniform":
        return uniform
    if name == "lora":
        ranks = [equal_rank(uniform.allocation, rank)] * layers
        return Allocation(kind="ranks", allocation=ranks, how={"map": "uniform", "experts": total})
    raise InputError(
        f"there is no plan {name!r}; choose of {NAMES}, or name a .json file of a plan"
    )


def check_plan(
    name: str, total: int, *, model: Any, options: FinetuneOptions, scored: bool = True
) -> None:
    """Refuse beforehand a name that no plan has, a file of another total, `layerif` without scores.

    Args:
        name, total: as `expert_plan`.
        model: that adapters are for; a skeleton without weights will do.
        options: that they are trained with.
        scored: whether there is influence for the plan `layerif`, or will be.

    Raises:
        InputError: as `expert_plan`, but for what scores bring; or as `complete_plan`.
    """
    plan = None
    if name.endswith(".json"):
        plan = _read(Path(name), total, options.rank)
    elif name == "layerif" and not scored:
        raise InputError(NO_INFLUENCE)
    elif name != "layerif" and name not in METRICS:
        plan = _by_depth(name, total, options.rank, describe(model).layers)
    complete_plan(model, plan, options)


def names_of(words: Sequence[str]) -> list[str]:
    """What plans are called, the uniform one first, since all are compared with it."""
    return list(dict.fromkeys(("uniform", *words)))


def check_titles(names: Iterable[str]) -> list[str]:
    """What each plan is called, in order.

    Raises:
        InputError: two would be called the same, capitals aside (some disks take no notice of
            them), and the results of one would be taken for the other's.
    """
    titles: dict[str, str] = {}
    for name in names:
        title = title_of(name)
        if (other := titles.setdefault(title.lower(), name)) != name:
            raise InputError(
                f"the plans {other} and {name} would both be called {title} in tables and files; "
                "give the file another name"
            )
    return [title_of(name) for name in titles.values()]


def title_of(name: str) -> str:
    """What a plan is called in tables and files."""
    return Path(name).stem if name.endswith(".json") else name


def _read(path: Path, total: int, rank: int) -> Allocation:
    plan = Allocation.load(path)
    wanted = total if plan.kind == "experts" else total * rank
    if plan.kind == "sparsity" or plan.realised_total != wanted:
        raise InputError(
            f"the plan {path} has {plan.kind} of {plan.realised_total:g} in all; plans are "
            f"compared at equal parameters, so right would be {total} experts, or ranks of "
            f"{total * rank}"
        )
    return plan
