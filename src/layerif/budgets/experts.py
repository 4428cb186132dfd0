"""Experts from scores: how many LoRA experts each layer gets, with an exact total.

Every layer keeps at least one expert. Shares are real numbers that sum to the total; the largest
remainders decide who is rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.budgets.scores import (
    ConstantScoresError,
    FloatArray,
    check_scores,
    minmax,
    name_layers,
    orient,
)
from layerif.choices import OnConstant, Orientation, check_choice
from layerif.errors import InputError

IntArray = NDArray[np.int64]

MOLA_SHAPE = (2, 4, 6, 8)

# Remainders nearer than this are a tie: they differ by the round-off of the shares.
_TIE = 1e-9


def power_map(
    scores: ArrayLike,
    total: int,
    *,
    beta: float = 3.0,
    orientation: Orientation = "direct",
    on_constant: OnConstant = "error",
) -> IntArray:
    """Experts per layer in proportion to a power of the normalised score, `total` in all.

    LayerIF (arXiv 2505.23811): the weights are w_l = q_l^beta, q the min-max of the scores, and
    `apportion` turns them into experts. The scale and offset of the scores do not matter.

    Args:
        scores: shape (layers,), any unit.
        total: experts in all, at least one per layer.
        beta: positive; the larger, the more the highest layers take.
        orientation: `direct` gives high scores more experts, `inverse` fewer.
        on_constant: what to do when all scores are equal: `error` or `uniform`. One layer alone
            always gets the total.

    Returns:
        int64, shape (layers,): at least 1 each, in the order of the scores up to ties.

    Raises:
        ConstantScoresError: the scores do not tell the layers apart.
        InputError: the total is below the number of layers, or beta is not positive and finite.
    """
    vector = check_scores(scores)
    _check_total(total, vector.size)
    check_choice(on_constant, OnConstant, "on_constant")
    check_choice(orientation, Orientation, "orientation")
    if not 0 < beta < np.inf:
        raise InputError(
            f"beta is {beta}; it must be a positive finite number: at 0 the scores would have no "
            f"say, below it the lowest layer would take all (for that, orientation='inverse')"
        )
    try:
        q = orient(minmax(vector), orientation)
    except ConstantScoresError:
        if on_constant == "error" and vector.size > 1:
            raise
        return uniform_map(vector.size, total)
    return apportion(q**beta, total)


def mola_map(layers: int, total: int, shape: Sequence[float] = MOLA_SHAPE) -> IntArray:
    """Experts by depth alone, in as many groups of layers as `shape` has numbers.

    MoLA (arXiv 2402.08562): 2-4-6-8, 5-5-5-5, 8-6-4-2 or any other list, scaled to the total by
    `apportion`. Of G groups, layer l (from 0) is in number floor(G l / layers): groups are
    equal or differ by one, the longer ones spread evenly from the first on (30 layers in four
    are 8, 7, 8, 7), and with fewer layers than groups some groups stay empty.

    Returns:
        int64, shape (layers,).

    Raises:
        InputError: the total is below the number of layers, or some number is not positive.
    """
    layers, total = _check_count(layers, "number of layers"), _check_total(total, layers)
    groups = check_scores(shape, name="experts of the shape")
    if groups.min() <= 0:
        raise InputError(
            f"the shape {'-'.join(f'{n:g}' for n in groups)} has a group with no experts; "
            f"every layer has at least one, so every number must be positive"
        )
    return apportion(groups[np.arange(layers) * groups.size // layers], total)


def uniform_map(layers: int, total: int) -> IntArray:
    """Equal experts in every layer; those left over go one each to the lowest layers.

    Returns:
        int64, shape (layers,).

    Raises:
        InputError: the total is below the number of layers.
    """
    return apportion(np.ones(_check_count(layers, "number of layers")), total)


def top_k(experts: ArrayLike) -> IntArray:
    """How many experts each token uses, per layer: two, or one where there is only one.

    Raises:
        InputError: some number of experts is not a whole number of at least 1.
    """
    counts = check_scores(experts, name="experts")
    bad = np.flatnonzero((counts < 1) | (counts != np.rint(counts)))
    if bad.size:
        raise InputError(
            f"the experts of {name_layers(bad)} (first: {counts[bad[0]]:g}) are not "
            f"a whole number of at least 1"
        )
    return np.minimum(2, counts).astype(np.int64)


def apportion(weights: ArrayLike, total: int) -> IntArray:
    """Whole numbers of at least 1 that sum to `total`, as near as they can be to the weights.

    The shares are max(1, kappa w), kappa such that they sum to the total: what the floor takes is
    taken from all others alike. Each is rounded down, and what is left goes one each to the
    largest remainders, ties (within 1e-9) to the lower layer. With w = alpha^beta, alpha the
    power-law exponents of the layers, this is the budget of AlphaLoRA (arXiv 2410.10054).

    Args:
        weights: w, shape (layers,), none negative and one at least positive.
        total: the sum to reach, at least one per layer.

    Returns:
        int64, shape (layers,).

    Raises:
        InputError: the weights are not as above, or the total is below the number of layers.
    """
    vector = check_scores(weights, name="weights")
    total = _check_total(total, vector.size)
    if vector.min() < 0 or vector.max() == 0:
        bad = np.flatnonzero(vector <= 0)
        raise InputError(
            f"the weights of {name_layers(bad)} are not positive (first: {vector[bad[0]]:g}); "
            f"none may be negative and one at least must be positive"
        )
    shares = _floored_shares(vector / vector.max(), total)
    experts = np.floor(shares + _TIE).astype(np.int64)
    ties = np.rint((shares - experts) / _TIE)
    order = np.argsort(-ties, kind="stable")
    experts[order[: total - experts.sum()]] += 1
    return experts


def _floored_shares(weights: FloatArray, total: int) -> FloatArray:
    """max(1, kappa w) with kappa solved: were the m heaviest above the floor, it would be kappa_m.

    Those m are right up to the last whose own share is at least the floor.
    """
    heaviest = np.sort(weights)[::-1]
    m = np.arange(1, weights.size + 1)
    kappa = (total - weights.size + m) / np.cumsum(heaviest)
    above = int((kappa * heaviest >= 1).sum())
    return np.maximum(1.0, kappa[max(above, 1) - 1] * weights)


def _check_count(value: int, name: str) -> int:
    try:
        count = index(value)
    except TypeError as error:
        raise InputError(f"the {name} is {value!r}; it must be a whole number") from error
    if count < 1:
        raise InputError(f"the {name} is {count}; it must be at least 1")
    return count


def _check_total(total: int, layers: int) -> int:
    count = _check_count(total, "total")
    if count < layers:
        raise InputError(
            f"a total of {count} is too few for {layers} layers: each needs at least one, "
            f"so give {layers} or more"
        )
    return count
