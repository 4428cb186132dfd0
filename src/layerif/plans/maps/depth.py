"""Depth from scores: which layers are kept, so many of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.core.choices import OnConstant, Orientation
from layerif.errors import InputError
from layerif.plans.maps.scores import check_scores, positions

# Layers at the end that the rule of thumb keeps.
KEPT_AT_END = 2


def highest_map(
    scores: ArrayLike,
    total: float,
    *,
    orientation: Orientation = "direct",
    on_constant: OnConstant = "error",
) -> NDArray[np.int64]:
    """(n,) 1 for the `total` layers of the highest scores, else 0; of equal ones the lower layer.

    With the metric block_influence this is ShortGPT (arXiv 2403.03853).

    Args:
        scores: (n,), any unit.
        total: layers kept, 1 to n.
        orientation, on_constant: as `DepthMapOptions` has checked them.

    Raises:
        ConstantScoresError: the scores do not tell the layers apart.
        InputError: the total is no such number.
    """
    vector = check_scores(scores)
    kept = _checked(len(vector), total)
    place = positions(vector, orientation, on_constant)
    if place is None:
        return spaced(len(vector), total)
    levels = np.zeros(len(vector), dtype=np.int64)
    levels[np.argsort(-place, kind="stable")[:kept]] = 1
    return levels


def spaced(count: int, total: float) -> NDArray[np.int64]:
    """(count,) 1 or 0, the layers dropped spread evenly; the first and the last are kept longest.

    Raises:
        InputError: the total is not a whole number from 1 to `count`.
    """
    dropped = count - _checked(count, total)
    levels = np.ones(count, dtype=np.int64)
    # The middles of as many equal parts.
    levels[((2 * np.arange(dropped) + 1) * count) // (2 * max(dropped, 1))] = 0
    return levels


def last(count: int, total: float) -> NDArray[np.int64]:
    """(count,) 1 or 0: the last layers go, but the very last two, as far as that is possible.

    Raises:
        InputError: as `spaced`.
    """
    kept = _checked(count, total)
    end = min(KEPT_AT_END, kept - 1)
    levels = np.ones(count, dtype=np.int64)
    levels[kept - end : count - end] = 0
    return levels


def _checked(count: int, total: float) -> int:
    if total != int(total) or not 1 <= total <= count:
        raise InputError(
            f"layers kept must be a whole number from 1 to the {count} layers there are, and not "
            f"{total:g}"
        )
    return int(total)
