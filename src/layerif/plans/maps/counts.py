"""Whole numbers per layer, with an exact total: LoRA experts, or ranks of a plain LoRA.

Every layer keeps at least one. Scores become weights, and weights shares that sum to the total; the
largest remainders decide who is rounded up, or the rule of the published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.core.choices import CountsCompat, OnConstant, Orientation, ScoreScale
from layerif.errors import InputError
from layerif.plans.maps.scores import FloatArray, check_scores, positions, refuse_layers

IntArray = NDArray[np.int64]

MOLA_SHAPE = (2, 4, 6, 8)
# Remainders nearer than this are a tie: they differ by the round-off of the shares.
_TIE = 1e-9
# Of experts or ranks, far above any model's; up to there the shares are exact in float64.
MOST = 10**6


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
        beta, orientation, normalise, on_constant: as `CountsMapOptions` has checked them. One layer
            alone always gets the total.
        compat: how weights become whole numbers: by `apportion`, or with `authors` by
            `apportion_as_authors`.

    Returns:
        int64, shape (layers,): at least 1 each, in the order of the scores up to ties (with
        `authors` up to its residual).

    Raises:
        ConstantScoresError: the scores do not tell the layers apart.
        InputError: the total is below the number of layers, or scores that are not normalised are
            negative or to be turned round.
    """
    vector = check_scores(scores)
    q = positions(vector, orientation, on_constant)
    if q is None:
        return uniform_counts(vector.size, total)
    if normalise == "none":
        if orientation == "inverse":
            raise InputError(
                "orientation 'inverse' turns the min-max of the scores round, and normalise 'none' "
                "takes them as they are; leave out one of the two"
            )
        advice = "only their min-max has a power: normalise='minmax'"
        refuse_layers(vector < 0, vector, "scores", "negative", advice)
        q = vector
    with np.errstate(over="ignore", under="ignore"):  # too large a weight is refused by name
        weights = q**beta
    return (apportion_as_authors if compat == "authors" else apportion)(weights, total)


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
    groups = check_scores(shape, name="experts of the shape")
    if groups.min() <= 0:
        raise InputError(
            f"the shape {'-'.join(f'{n:g}' for n in groups)} has a group with no experts; "
            f"every layer has at least one, so every number must be positive"
        )
    return apportion(groups[np.arange(layers) * groups.size // layers], total)


def uniform_counts(layers: int, total: int) -> IntArray:
    """Equal experts in every layer; those left over go one each to the lowest layers.

    Returns:
        int64, shape (layers,).

    Raises:
        InputError: the total is below the number of layers.
    """
    return apportion(np.ones(layers), total)


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
    vector, total = _checked(weights, total)
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
    whatever scale they are. That puts a residual on one layer, mostly not the one that was rounded
    most, so it is for published budgets. Where the code would leave a layer none, it keeps one.

    Args:
        weights: as for `apportion`, but their scale matters.
        total: the sum to reach, at least one per layer.

    Returns:
        int64, shape (layers,).

    Raises:
        InputError: as `apportion`.
    """
    vector, total = _checked(weights, total)
    counts = np.maximum(1, np.rint(vector / vector.sum() * total)).astype(np.int64)
    while counts.sum() < total:
        counts[np.argmin(vector - counts)] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > 1, vector - counts, -np.inf))] -= 1
    return counts


def _floored_shares(weights: FloatArray, total: int) -> FloatArray:
    """max(1, kappa w) with kappa solved: were the m heaviest above the floor, it would be kappa_m.

    Those m are right up to the last whose own share is at least the floor.
    """
    heaviest = np.sort(weights)[::-1]
    m = np.arange(1, weights.size + 1)
    kappa = (total - weights.size + m) / np.cumsum(heaviest)
    above = int((kappa * heaviest >= 1).sum())
    return np.maximum(1.0, kappa[max(above, 1) - 1] * weights)


def equal_ranks(experts: ArrayLike, rank: int | ArrayLike) -> IntArray:
    """The rank of a plain LoRA in each layer that equals that of its experts together, n_l r.

    Args:
        experts: n, shape (layers,).
        rank: r of each expert: one number, or shape (layers,).

    Returns:
        int64, shape (layers,).

    Raises:
        InputError: not whole numbers of at least 1, or not as many ranks as layers.
    """
    counts = _check_counts(experts, "experts")
    if np.ndim(rank) == 0:
        return counts * _check_count(rank, "rank")
    ranks = _check_counts(rank, "ranks")
    if ranks.size != counts.size:
        raise InputError(
            f"there are {ranks.size} ranks for {counts.size} layers; give one for each, or one "
            "number for all"
        )
    return counts * ranks


def equal_rank(experts: ArrayLike, rank: int | ArrayLike) -> int:
    """The rank, one for all layers, of a plain LoRA of equal total rank: round(sum_l n_l r / L).

    The baseline that a mixture of LoRA experts has to beat; the total is exact where L divides it.

    Raises:
        InputError: as `equal_ranks`.
    """
    ranks = equal_ranks(experts, rank)
    return round(int(ranks.sum()) / ranks.size)


def _checked(weights: ArrayLike, total: int) -> tuple[FloatArray, int]:
    vector = check_scores(weights, name="weights")
    if vector.min() < 0 or vector.max() == 0:
        advice = "none may be negative and one at least must be positive"
        refuse_layers(vector <= 0, vector, "weights", "not positive", advice)
    total, layers = _check_count(total, "total"), vector.size
    if total < layers:
        raise InputError(
            f"a total of {total} is too few for {layers} layers: each needs at least one, "
            f"so give {layers} or more"
        )
    return vector, total


def _check_counts(values: ArrayLike, name: str) -> IntArray:
    counts = check_scores(values, name=name)
    bad = (counts < 1) | (counts != np.rint(counts))
    refuse_layers(bad, counts, name, "not counts", "each must be a whole number of at least 1")
    return counts.astype(np.int64)


def _check_count(value: object, name: str) -> int:
    try:
        count = index(value)  # type: ignore[arg-type]  # or it says so
    except TypeError as error:
        raise InputError(f"the {name} is {value!r}; it must be a whole number") from error
    if not 1 <= count <= MOST:
        raise InputError(f"the {name} is {count}; it must be at least 1 and at most {MOST:,}")
    return count
