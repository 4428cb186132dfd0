"""Experts from scores: how many LoRA experts each layer gets, with an exact total.

The maps hand out whole numbers of anything that every layer keeps one of: ranks come by them too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from layerif.core.choices import CountsCompat, OnConstant, Orientation, ScoreScale, check_choice
from layerif.errors import InputError
from layerif.plans.maps.aggregation import FloatArray, check_scores, name_layers
from layerif.plans.maps.counts import (
    IntArray,
    apportion,
    apportion_as_authors,
    check_count,
    check_total,
)
from layerif.plans.maps.scores import (
    ConstantScoresError,
    minmax,
    orient,
)

MOLA_SHAPE = (2, 4, 6, 8)


def power_map(
    scores: ArrayLike,
    total: int,
    *,
    beta: float = 3.0,
    orientation: Orientation = "direct",
    normalise: ScoreScale = "minmax",
    compat: CountsCompat = "none",
    on_constant: OnConstant = "error",
) -> IntArray:
    """Experts per layer in proportion to a power of the score, `total` in all.

    LayerIF (arXiv 2505.23811): the weights are w_l = q_l^beta, q the min-max of the scores, and
    `apportion` turns them into experts. The scale and offset of the scores do not matter.
    AlphaLoRA (arXiv 2410.10054) takes w_l = alpha_l^beta with beta = 2.5 from the power-law
    exponents alpha as they are: `normalise="none"`.

    Args:
        scores: shape (layers,), any unit.
        total: experts in all, at least one per layer.
        beta: positive; the larger, the more the highest layers take.
        orientation: `direct` gives high scores more experts, `inverse` fewer.
        normalise: what is taken to the power: the `minmax` of the scores, or with `none` the scores
            themselves, none of which may be negative then.
        compat: how weights become whole numbers: by `apportion`, or with `authors` as published
            code does it, by `apportion_as_authors`.
        on_constant: what to do when all scores are equal: `error` or `uniform`. One layer alone
            always gets the total.

    Returns:
        int64, shape (layers,): at least 1 each, in the order of the scores up to ties (with
        `authors` up to its residual).

    Raises:
        ConstantScoresError: the scores do not tell the layers apart.
        InputError: the total is below the number of layers, beta is not positive and finite, or
            scores that are not normalised are negative or to be turned round.
    """
    vector = check_scores(scores)
    check_total(total, vector.size)
    check_choice(on_constant, OnConstant, "on_constant")
    check_choice(orientation, Orientation, "orientation")
    check_choice(normalise, ScoreScale, "normalise")
    check_choice(compat, CountsCompat, "compat")
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
    if normalise == "none":
        q = _as_they_are(vector, orientation)
    with np.errstate(over="ignore", under="ignore"):  # too large a weight is refused by name
        weights = q**beta
    return (apportion_as_authors if compat == "authors" else apportion)(weights, total)


def _as_they_are(scores: FloatArray, orientation: Orientation) -> FloatArray:
    if orientation == "inverse":
        raise InputError(
            "orientation 'inverse' turns the min-max of the scores round, and normalise 'none' "
            "takes them as they are; leave out one of the two"
        )
    negative = np.flatnonzero(scores < 0)
    if negative.size:
        raise InputError(
            f"the scores of {name_layers(negative)} are negative (first: {scores[negative[0]]:g}), "
            f"and have no power as they are; take normalise='minmax'"
        )
    return scores


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
    layers, total = check_count(layers, "number of layers"), check_total(total, layers)
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
    return apportion(np.ones(check_count(layers, "number of layers")), total)


def check_experts(experts: ArrayLike, *, name: str = "experts") -> IntArray:
    """Whole numbers of at least 1, int64 of shape (layers,).

    Raises:
        InputError: some are not; `name` is what the message calls them.
    """
    counts = check_scores(experts, name=name)
    bad = np.flatnonzero((counts < 1) | (counts != np.rint(counts)))
    if bad.size:
        raise InputError(
            f"the {name} of {name_layers(bad)} (first: {counts[bad[0]]:g}) are not "
            f"a whole number of at least 1"
        )
    return counts.astype(np.int64)
