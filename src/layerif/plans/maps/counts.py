"""Whole numbers per layer, with an exact total: how real weights become experts or ranks.

Every layer keeps at least one. Shares are real numbers that sum to the total; the largest
remainders decide who is rounded up, or the rule of the published code.
"""

from __future__ import annotations

from operator import index

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.errors import InputError
from layerif.plans.maps.aggregation import FloatArray, check_scores, name_layers

IntArray = NDArray[np.int64]

# Remainders nearer than this are a tie: they differ by the round-off of the shares.
_TIE = 1e-9
# Of experts or ranks, far above any model's; up to there the shares are exact in float64.
MOST = 10**6


def apportion(weights: ArrayLike, total: int) -> IntArray:
    """Whole numbers of at least 1 that sum to `total`, as near as they can be to the weights.

    The shares are max(1, kappa w), kappa such that they sum to the total: what the floor takes is
    taken from all others alike. Each is rounded down, and what is left goes one each to the
    largest remainders, ties (within 1e-9) to the lower layer.

    Args:
        weights: w, shape (layers,), none negative and one at least positive.
        total: the sum to reach, at least one per layer.

    Returns:
        int64, shape (layers,).

    Raises:
        InputError: the weights are not as above, or the total is below the number of layers.
    """
    vector = _check_weights(weights)
    total = check_total(total, vector.size)
    shares = _floored_shares(vector / vector.max(), total)
    counts = np.floor(shares + _TIE).astype(np.int64)
    ties = np.rint((shares - counts) / _TIE)
    order = np.argsort(-ties, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def apportion_as_authors(weights: ArrayLike, total: int) -> IntArray:
    """Whole numbers of at least 1 that sum to `total`, by the rule of AlphaLoRA's code.

    n = round(total w / sum w), a half to the even neighbour. Then one unit at a time: what is
    missing goes where w - n is least, what is too much is taken where it is largest, with the w of
    whatever scale they are. That puts a residual on one layer, mostly not the one that rounding
    wronged, so it is for published budgets. Where the code would leave a layer none, it keeps one.

    Args:
        weights: w, shape (layers,), none negative and one at least positive; their scale matters.
        total: the sum to reach, at least one per layer.

    Returns:
        int64, shape (layers,).

    Raises:
        InputError: as `apportion`.
    """
    vector = _check_weights(weights)
    total = check_total(total, vector.size)
    counts = np.maximum(1, np.rint(vector / vector.sum() * total)).astype(np.int64)
    while counts.sum() < total:
        counts[np.argmin(vector - counts)] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > 1, vector - counts, -np.inf))] -= 1
    return counts


def _check_weights(weights: ArrayLike) -> FloatArray:
    vector = check_scores(weights, name="weights")
    if vector.min() < 0 or vector.max() == 0:
        bad = np.flatnonzero(vector <= 0)
        raise InputError(
            f"the weights of {name_layers(bad)} are not positive (first: {vector[bad[0]]:g}); "
            f"none may be negative and one at least must be positive"
        )
    return vector


def _floored_shares(weights: FloatArray, total: int) -> FloatArray:
    """max(1, kappa w) with kappa solved: were the m heaviest above the floor, it would be kappa_m.

    Those m are right up to the last whose own share is at least the floor.
    """
    heaviest = np.sort(weights)[::-1]
    m = np.arange(1, weights.size + 1)
    kappa = (total - weights.size + m) / np.cumsum(heaviest)
    above = int((kappa * heaviest >= 1).sum())
    return np.maximum(1.0, kappa[max(above, 1) - 1] * weights)


def check_count(value: int, name: str) -> int:
    """A whole number of at least 1, or an InputError that says what `name` is instead."""
    try:
        count = index(value)
    except TypeError as error:
        raise InputError(f"the {name} is {value!r}; it must be a whole number") from error
    if not 1 <= count <= MOST:
        raise InputError(f"the {name} is {count}; it must be at least 1 and at most {MOST:,}")
    return count


def check_total(total: int, layers: int) -> int:
    """A total that gives each layer at least one, or an InputError."""
    count = check_count(total, "total")
    if count < layers:
        raise InputError(
            f"a total of {count} is too few for {layers} layers: each needs at least one, "
            f"so give {layers} or more"
        )
    return count
