"""Sparsities from scores: how much of each layer to prune, with an exact total.

A sparsity is the fraction of a layer's weights that become zero. The total S is the fraction over
all pruned weights together, so layers count by their sizes N_l. A "layer" may as well be a single
projection: any list of modules with one score and one size each will do.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from math import fsum

import numpy as np
from numpy.typing import ArrayLike

from layerif.core.choices import OnConstant, Orientation
from layerif.errors import InputError
from layerif.plans.maps.scores import FloatArray, check_scores, positions, refuse_layers

# Half the width of the band of sparsities, as the authors of each set it.
OWL_LAMBDA = 0.08
DLP_LAMBDA = 0.15


def layerif_map(
    scores: ArrayLike,
    sparsity: float,
    layer_sizes: ArrayLike,
    *,
    epsilon: float = 0.1,
    smooth: bool = True,
    orientation: Orientation = "direct",
    s_max: float = 1.0,
    on_constant: OnConstant = "error",
) -> FloatArray:
    """Sparsity per layer, linear in the smoothed score, by weight exactly `sparsity` in all.

    LayerIF (arXiv 2505.23811); without smoothing it is the map of AlphaPruning (2410.10912):
    q_l = (1 - eps) + 2 eps * minmax(score)_l and s_l = q_l * S * sum N / sum(N q). What would
    exceed `s_max` is cut there, and the difference goes to the other layers, the same to each.

    Args:
        scores: shape (layers,), any unit.
        sparsity: S in [0, 1], the fraction of zeros over all the layers' weights.
        layer_sizes: N, shape (layers,), parameters per layer.
        epsilon, orientation, on_constant: as `SparsityMapOptions` has checked them. One layer alone
            always gets S.
        smooth: smooth the scores over neighbouring layers (`smoothed`); false where neighbours
            in the list are not neighbours in the model.
        s_max: in [S, 1], no layer goes above it.

    Returns:
        Shape (layers,), in [0, s_max].

    Raises:
        ConstantScoresError: the scores, or the smoothed scores, do not tell the layers apart.
        InputError: S or s_max outside its range, or scores and sizes of different length.
    """
    vector = check_scores(scores)
    uniform = uniform_sparsity(sparsity, layer_sizes, s_max=s_max)
    sizes = _check_sizes(layer_sizes, vector)
    place = positions(vector, orientation, on_constant, smooth=smooth)
    if place is None:
        return uniform
    q = (1 - epsilon) + 2 * epsilon * place
    mean_q = fsum(sizes * q) / fsum(sizes)
    return project_to_total(q * sparsity / mean_q, sizes, sparsity, high=s_max)


def owl_map(
    scores: ArrayLike,
    sparsity: float,
    layer_sizes: ArrayLike,
    *,
    lam: float = OWL_LAMBDA,
    orientation: Orientation = "inverse",
    s_max: float = 1.0,
    on_constant: OnConstant = "error",
) -> FloatArray:
    """Sparsity per layer within a band of width 2 lam, by weight exactly `sparsity` in all.

    OWL (arXiv 2310.05175): d_l = 2 lam * minmax(score)_l and s_l = S - (d_l - mean d), so the layer
    with the most outliers is pruned least. The mean over layers is unweighted, as in the authors'
    code; what the layers' sizes, or bounds that are left, change in the total is then corrected by
    one shift of all layers within the bounds (`project_to_total`).

    Args:
        scores: shape (layers,), any unit; OWL's own are outlier ratios.
        lam: in [0, 0.5], half the width of the band, in units of sparsity.
        orientation: `inverse`, OWL's own, prunes high scores less, `direct` more.

    The other arguments, what is returned and the errors are those of `layerif_map`.
    """
    vector = check_scores(scores)
    uniform = uniform_sparsity(sparsity, layer_sizes, s_max=s_max)
    sizes = _check_sizes(layer_sizes, vector)
    place = positions(vector, orientation, on_constant)
    if place is None:
        return uniform
    d = 2 * lam * place
    return project_to_total(sparsity + (d - fsum(d) / d.size), sizes, sparsity, high=s_max)


# With the wider band of DLP (arXiv 2505.23807), whose scores are r_l.
dlp_map = partial(owl_map, lam=DLP_LAMBDA)


def uniform_sparsity(sparsity: float, layer_sizes: ArrayLike, *, s_max: float = 1.0) -> FloatArray:
    """Give every layer the same `sparsity`; shape (layers,).

    Raises:
        InputError: the sparsity is outside [0, s_max], or a size is not positive.
    """
    if not 0 <= sparsity <= 1:
        raise InputError(f"sparsity is {sparsity}; it must lie between 0 and 1")
    if sparsity > s_max:
        raise InputError(
            f"a sparsity of {sparsity:g} in all is not possible with layers that stay at or below "
            f"s_max = {s_max:g}; lower the one or raise the other"
        )
    return np.full(_check_sizes(layer_sizes).size, float(sparsity))


def project_to_total(
    values: ArrayLike,
    weights: ArrayLike,
    total: float,
    low: float = 0.0,
    high: float = 1.0,
) -> FloatArray:
    """Shift all values by one c and clip them, so that their weighted mean is exactly `total`.

    The result x = clip(values + c, low, high) with sum(w x) = total * sum(w) is, of all that meet
    total and bounds, the nearest to `values` in sum w (x - values)^2. The sum is piecewise linear
    and rising in c, with a knot wherever a value meets a bound: the piece is found by bisecting
    the sorted knots, c within it in closed form. Values that need no change are returned as given.

    Args:
        values: shape (n,), any finite numbers.
        weights: shape (n,), positive; only their proportions matter.
        total: the weighted mean to reach, in [low, high].
        low: lower bound of the result.
        high: upper bound of the result.

    Returns:
        Shape (n,), in the order of `values`: x_i <= x_j wherever values_i <= values_j.

    Raises:
        InputError: no vector within the bounds has that mean, or an argument is not as above.
    """
    vector = check_scores(values, name="values")
    sizes = _check_sizes(weights, vector, names=("weights", "values"))
    if not (np.isfinite([low, high]).all() and low <= total <= high):
        raise InputError(
            f"a weighted mean of {total:g} is not possible with values between {low:g} and "
            f"{high:g}; the bounds must be finite and the total lie between them"
        )
    shares = sizes / fsum(sizes)

    def mean(c: float) -> float:
        return fsum(shares * (vector + c).clip(low, high))

    if total in (low, high):
        return np.full(vector.size, float(total))
    if abs(mean(0.0) - total) <= 4 * np.finfo(np.float64).eps * max(abs(low), abs(high)):
        return vector.clip(low, high)

    enters, leaves = low - vector, high - vector
    knots = np.unique(np.concatenate([enters, leaves])).tolist()
    # Clamped, since round-off may leave the mean just short of a bound at the outermost knots.
    piece = min(max(bisect_left(knots, total, key=mean), 1), len(knots) - 1)
    left, right = knots[piece - 1], knots[piece]
    free = (enters <= left) & (leaves >= right)
    result = (vector + left).clip(low, high)
    if free.any():
        # What is missing at the left knot, not c itself: far-off values would swallow its digits.
        result[free] += (total - fsum(shares * result)) / fsum(shares[free])
    return result.clip(low, high)


def _check_sizes(
    sizes: ArrayLike,
    beside: FloatArray | None = None,
    *,
    names: tuple[str, str] = ("layer sizes", "scores"),
) -> FloatArray:
    vector = check_scores(sizes, name=names[0])
    if beside is not None and vector.size != beside.size:
        raise InputError(
            f"there are {vector.size} {names[0]} and {beside.size} {names[1]}; "
            f"give one of each per layer"
        )
    advice = "leave out of the list what has nothing to prune"
    refuse_layers(vector <= 0, vector, names[0], "not positive", advice)
    return vector
