"""Layer scores: one number per layer, summed from influences, and its place between 0 and 1.

Scores are in the order of the layers, of any unit and sign. Plans use only how they are placed
between the lowest and the highest of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.core.choices import Aggregation, OnConstant, Orientation, check_choice
from layerif.errors import InputError

FloatArray = NDArray[np.float64]

TOP_FRACTION = 0.25
SAVGOL_WINDOW = 7
SAVGOL_POLYORDER = 3
# A spread this small beside the scores is round-off of whatever summed them; min-max would blow
# it up to the full range and spend a budget on noise.
_ROUND_OFF = 1e-12
# Layers that an error names.
_NAMED = 8


class ConstantScoresError(InputError):
    """The scores do not tell the layers apart, so no budget can follow from them."""


def aggregate(influence: ArrayLike, how: Aggregation = "positive") -> FloatArray:
    """Sum the influence I of every training sample on each layer into one score per layer.

    The sign is `helpful_positive`: I > 0 where the sample lowers the validation loss. With n
    samples, `all` is the sum of I; `positive` (+VE) the sum of its positive entries; `top` the
    sum of the layer's own k = max(1, round(0.25 n)) largest entries (Python's round: a half goes
    to the even neighbour, so n = 10 gives 2); `negative` minus the sum of the negative entries.
    The first three are the aggregations of LayerIF (arXiv 2505.23811).

    Args:
        influence: shape (layers, samples), in the unit of the loss.
        how: which of the four.

    Returns:
        Shape (layers,), in the unit of `influence`.

    Raises:
        InputError: not a finite matrix of at least one layer and one sample, or no such `how`.
    """
    check_choice(how, Aggregation, "aggregation")
    form = "(layers, samples), with at least one of each"
    matrix = _finite_array(influence, "influence values", 2, form)
    if how == "top":
        k = max(1, round(TOP_FRACTION * matrix.shape[1]))
        matrix = np.sort(matrix, axis=1)[:, -k:]
    elif how == "positive":
        matrix = matrix.clip(min=0)
    elif how == "negative":
        # From 0 down, not negated: a layer without negative entries scores 0.0, never -0.0.
        return 0.0 - matrix.clip(max=0).sum(axis=1)
    return np.asarray(matrix.sum(axis=1))


def check_scores(scores: ArrayLike, *, name: str = "scores") -> FloatArray:
    """Return `scores` as a new float64 vector of shape (layers,), or say what it is not.

    Raises:
        InputError: not numbers, not one-dimensional, empty, or not finite somewhere; `name` is
            what the message calls them.
    """
    return _finite_array(scores, name, 1, "(layers,), one number per layer and at least one layer")


def _finite_array(values: ArrayLike, name: str, dimensions: int, form: str) -> FloatArray:
    try:
        array = np.array(values)
        if array.size and array.dtype.kind not in "iuf":
            raise TypeError(f"their type is {array.dtype}")
        array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the {name} are not numbers in a regular array: {error}") from error
    if array.ndim != dimensions or not array.size:
        raise InputError(f"the {name} have shape {array.shape}; expected {form}")
    every = "every one must be a finite number"
    refuse_layers(~np.isfinite(array), array, name, "not finite", every)
    return array


def refuse_layers(
    bad: NDArray[np.bool_], values: FloatArray, name: str, fault: str, advice: str
) -> None:
    """Refuse values (layers, ...) where some are bad.

    Raises:
        InputError: one is; names the layers, at most eight of them, and the first value.
    """
    if bad.any():
        layers = np.unique(np.nonzero(bad)[0])
        shown = ", ".join(map(str, layers[:_NAMED]))
        more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
        raise InputError(
            f"the {name} of layer{'s' if len(layers) > 1 else ''} {shown}{more} are {fault} "
            f"(first: {values[bad][0]:g}); {advice}"
        )


def minmax(scores: ArrayLike, *, name: str = "scores") -> FloatArray:
    """Map the lowest score to 0, the highest to 1, the others in proportion; shape (layers,).

    Raises:
        ConstantScoresError: all scores are equal, to within 1e-12 of the largest magnitude (one
            layer alone is such a case).
        InputError: see `check_scores`.
    """
    # Halved, since the difference of two finite numbers need not be finite.
    halves = check_scores(scores, name=name) / 2
    above = halves - halves.min()
    spread = above.max()
    if spread <= _ROUND_OFF * np.abs(halves).max():
        raise ConstantScoresError(
            f"the {name} do not tell the layers apart: all {halves.size} are "
            f"{2 * halves[0]:.6g}, which leaves no lowest and no highest to allocate between; "
            f"use other scores, or ask for the uniform allocation with on_constant='uniform'"
        )
    return above / spread


def smoothing_window(layers: int) -> int | None:
    """Window of `smoothed` for that many layers: 7, or 5 for five or six, or None for fewer."""
    window = min(SAVGOL_WINDOW, layers - 1 + layers % 2)
    return window if window > SAVGOL_POLYORDER else None


def smoothed(scores: ArrayLike) -> FloatArray:
    """Smooth over neighbouring layers; shape (layers,).

    Savitzky-Golay of order 3 over 7 layers, the ends taken from the first and last window's own
    polynomial, as in LayerIF (arXiv 2505.23811). With fewer than 7 layers the window is the
    largest odd one that fits and is above the order, and where there is none, nothing is smoothed.
    The result may leave the scores' own range.

    Raises:
        InputError: see `check_scores`.
    """
    vector = check_scores(scores)
    window = smoothing_window(vector.size)
    if window is None:
        return vector
    from scipy.signal import savgol_filter

    return np.asarray(savgol_filter(vector, window, SAVGOL_POLYORDER, mode="interp"))


def positions(
    scores: ArrayLike,
    orientation: Orientation,
    on_constant: OnConstant = "error",
    *,
    smooth: bool = False,
) -> FloatArray | None:
    """(layers,) q in [0, 1]: the higher, the more experts or sparsity a layer gets.

    Args:
        scores: shape (layers,), any unit.
        orientation: `direct` is min-max: a low cumulative influence is read as a well-trained
            layer, which needs fewer experts and can spare fewer weights (LayerIF, arXiv
            2505.23811). `inverse` is 1 less that.
        on_constant: what equal scores give: `error`, or with `uniform` None. One layer alone
            always gives None.
        smooth: smooth first, by `smoothed`.

    Raises:
        ConstantScoresError: the scores, or the smoothed scores, do not tell the layers apart.
        InputError: see `check_scores`.
    """
    try:
        q = minmax(scores)
        if smooth:
            # After the first minmax, so that round-off left by smoothing scores of any offset is
            # seen for what it is.
            q = minmax(smoothed(q), name="smoothed scores")
    except ConstantScoresError:
        if on_constant == "error" and np.size(scores) > 1:
            raise
        return None
    return q if orientation == "direct" else 1 - q
