"""One level for each unit, the least sum of losses within a budget: a knapsack, solved exactly."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.errors import InputError

# Budgets that the solution tells apart; beyond, costs are rounded up to as many units.
RESOLUTION = 100_000


def knapsack(losses: ArrayLike, costs: ArrayLike, budget: int) -> NDArray[np.int64]:
    """(units,) the level of each unit, for the least sum of losses whose costs are within `budget`.

    By dynamic programming over budgets, in steps of what all differences of costs have in common;
    with more than 100,000 steps costs are rounded up to fewer, so the budget is never exceeded.
    Among equal losses the cheaper level is taken.

    Args:
        losses: (units, levels), finite.
        costs: (units, levels) whole numbers, such as bytes.
        budget: of all costs together.

    Raises:
        InputError: the cheapest levels cost more than the budget.
    """
    loss, cost = np.asarray(losses, dtype=np.float64), np.asarray(costs, dtype=np.int64)
    least = cost.min(axis=1)
    extra = cost - least[:, None]
    spare = int(budget) - int(least.sum())
    if spare < 0:
        raise InputError(
            f"the smallest levels cost {int(least.sum()):,} together, more than the budget of "
            f"{int(budget):,}; raise the budget, or allow smaller levels"
        )
    spare = min(spare, int(extra.max(axis=1).sum()))
    step = max(math.gcd(*extra.ravel().tolist()), -(-spare // RESOLUTION), 1)
    steps, room = -(-extra // step), spare // step
    best = np.zeros(room + 1)
    chosen = np.zeros((len(loss), room + 1), dtype=np.uint8)
    for unit, (own, taken) in enumerate(zip(loss, steps, strict=True)):
        found = np.full(room + 1, np.inf)
        for level in np.argsort(taken, kind="stable"):
            if taken[level] > room:
                break
            moved = own[level] + best[: room + 1 - taken[level]]
            better = moved < found[taken[level] :]
            found[taken[level] :][better] = moved[better]
            chosen[unit, taken[level] :][better] = level
        best = found
    place = int(np.argmin(best))
    levels = np.zeros(len(loss), dtype=np.int64)
    for unit in reversed(range(len(loss))):
        levels[unit] = chosen[unit, place]
        place -= int(steps[unit, levels[unit]])
    return levels
