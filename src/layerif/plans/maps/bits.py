"""Bits from scores: whole numbers of bits whose mean by weight does not exceed a total."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.core.choices import OnConstant, Orientation
from layerif.plans.maps.knapsack import knapsack
from layerif.plans.maps.scores import check_scores, positions
from layerif.plans.maps.stored import WHOLE

# Bits of a weight.
LEVELS = (2, 3, 4, 5, 6, 7, 8, WHOLE)


def linear_map(
    scores: ArrayLike,
    total: float,
    sizes: ArrayLike,
    *,
    spread: float = 1.0,
    orientation: Orientation = "direct",
    on_constant: OnConstant = "error",
) -> NDArray[np.int64]:
    """(n,) bits next to total - spread for the lowest score and total + spread for the highest.

    Args:
        scores: (n,), any unit.
        total, sizes: as for `nearest_bits`.
        spread, orientation, on_constant: as `BitsMapOptions` has checked them.

    Raises:
        ConstantScoresError: the scores do not tell the layers apart.
        InputError: the total is below 2.
    """
    vector = check_scores(scores)
    place = positions(vector, orientation, on_constant)
    wanted = total + spread * (2 * place - 1) if place is not None else np.full(len(vector), total)
    return nearest_bits(wanted, total, sizes)


def nearest_bits(
    wanted: ArrayLike, total: float, sizes: ArrayLike, allowed: ArrayLike = LEVELS
) -> NDArray[np.int64]:
    """(n,) bits of least squared distance, by weight, to wanted ones, of a mean by weight.

    The total is spent: what is wanted is shifted, the same for all, until it is more than there is.

    Args:
        wanted: (n,) numbers of any size.
        total: the mean by weight that is not exceeded.
        sizes: (n,) weights of each.
        allowed: bits to choose among.

    Raises:
        InputError: the total is below all levels.
    """
    levels, numels = np.asarray(allowed, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
    asked = np.asarray(wanted, dtype=np.float64)
    asked = asked + max(total - float(np.average(asked, weights=numels)), 0) + 1
    distances = (levels[None] - asked[:, None]) ** 2
    budget = int(total * float(numels.sum()) + 0.5)
    chosen = knapsack(distances * numels[:, None], levels[None] * numels[:, None], budget)
    return levels[chosen]
