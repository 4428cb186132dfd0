"""The plans of experts that a comparison trains, by name; all of one total."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from layerif.allocate import allocate_experts
from layerif.artifacts import Allocation, LayerScores, MetricScores
from layerif.budgets import equal_rank
from layerif.errors import InputError

# AlphaLoRA's exponent (arXiv 2410.10054), of the alphas as they are.
ALPHALORA: dict[str, Any] = {"beta": 2.5, "normalise": "none"}
NAMES = "uniform, layerif, alphalora, mola-2468, mola-5555, mola-8642, random, lora"
PLAIN = "lora"

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
    group, _, shape = name.partition("-")
    if name == "layerif":
        if influence is None:
            raise InputError(
                "the plan layerif is made from influence: give --scores, a run folder of `layerif "
                "score`, or leave the plan out"
            )
        return allocate_experts(influence, total)
    if name == "alphalora":
        return allocate_experts(metric("pl_alpha"), total, **ALPHALORA)
    if name == "random":
        return allocate_experts(metric("random"), total)
    if name == PLAIN:
        uniform = equal_rank(allocate_experts([0.0] * layers, total, map="uniform").allocation, rank)
        return Allocation(
            kind="ranks", allocation=[uniform] * layers, how={"map": "uniform", "equals": total}
        )
    if group == "mola" and shape.isdigit():
        return allocate_experts(
            [0.0] * layers, total, map="mola", shape=[int(digit) for digit in shape]
        )
    if name == "uniform":
        return allocate_experts([0.0] * layers, total, map="uniform")
    raise InputError(f"there is no plan {name!r}; choose of {NAMES}, or name a .json file of a plan")


def names_of(words: Sequence[str]) -> list[str]:
    """What plans are called, the uniform one first, since all are compared with it."""
    return list(dict.fromkeys(("uniform", *words)))


def title_of(name: str) -> str:
    """What a plan is called in tables and files."""
    return Path(name).stem if name.endswith(".json") else name


def _read(path: Path, total: int, rank: int) -> Allocation:
    plan = Allocation.load(path)
    wanted = total if plan.kind == "experts" else total * rank
    if plan.kind == "sparsity" or plan.realised_total != wanted:
        raise InputError(
            f"the plan {path} has {plan.kind} of {plan.realised_total:g} in all; plans are compared "
            f"at equal parameters, so right would be {total} experts, or ranks of {total * rank}"
        )
    return plan
