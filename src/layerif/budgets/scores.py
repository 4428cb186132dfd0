"""Layer scores: sums of influence, and the way from a score to a position in [0, 1].

Scores are one number per layer, in the order of the layers, of any unit and sign. Budgets use
only how they are placed between the lowest and the highest of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.choices import Aggregation, Orientation, check_choice
from layerif.errors import InputError

FloatArray = NDArray[np.float64]

SAVGOL_WINDOW = 7
SAVGOL_POLYORDER = 3
TOP_FRACTION = 0.25

# A spread this small beside the scores is round-off of whatever summed them; min-max would blow
# it up to the full range and spend a budget on noise.
_ROUND_OFF = 1e-12


class ConstantScoresError(InputError):
    """The scores do not tell the layers apart, so no budget can follow from them."""


def check_scores(scores: ArrayLike, *, name: str = "scores") -> FloatArray:
    """Return `scores` as a new float64 vector of shape (layers,), or say what it is not.

    Raises:
        InputError: not numbers, not one-dimensional, empty, or not finite somewhere; `name` is
            what the message calls them.
    """
    vector = _float_array(scores, name)
    if vector.ndim != 1 or not vector.size:
        raise InputError(
            f"the {name} have shape {vector.shape}; right would be (layers,), "
            f"one number per layer and at least one layer"
        )
    _check_finite(vector, name)
    return vector


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
    """Window of `smooth` for that many layers: 7, or 5 for five or six, or None for fewer."""
    window = min(SAVGOL_WINDOW, layers - 1 + layers % 2)
    return window if window > SAVGOL_POLYORDER else None


def smooth(scores: ArrayLike) -> tuple[FloatArray, int | None]:
    """Smooth over neighbouring layers; shape (layers,), and the window used (None: unchanged).

    Savitzky-Golay of order 3 over 7 layers, the ends taken from the first and last window's own
    polynomial, as in LayerIF (arXiv 2505.23811). With fewer than 7 layers the window is the
    largest odd one that fits and is above the order. The result may leave the scores' own range.

    Raises:
        InputError: see `check_scores`.
    """
    vector = check_scores(scores)
    window = smoothing_window(vector.size)
    if window is None:
        return vector, None
    from scipy.signal import savgol_filter

    return np.asarray(savgol_filter(vector, window, SAVGOL_POLYORDER, mode="interp")), window


def orient(q: ArrayLike, orientation: Orientation) -> FloatArray:
    """Say which end of [0, 1] gets more experts and more sparsity; shape (layers,).

    `direct` keeps q: a low cumulative influence is read as a well-trained layer, which needs
    fewer experts and can spare fewer weights (LayerIF, arXiv 2505.23811). `inverse` is 1 - q.

    Raises:
        InputError: some q lies outside [0, 1], or there is no such orientation.
    """
    check_choice(orientation, Orientation, "orientation")
    vector = check_scores(q, name="positions q")
    if vector.min() < 0 or vector.max() > 1:
        raise InputError(
            f"the positions q go from {vector.min():.6g} to {vector.max():.6g}; "
            f"they are turned around within [0, 1], so take minmax of the scores first"
        )
    return vector if orientation == "direct" else 1 - vector


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
    matrix = _float_array(influence, "influence values")
    if matrix.ndim != 2 or not matrix.size:
        raise InputError(
            f"the influence values have shape {matrix.shape}; right would be "
            f"(layers, samples), with at least one of each"
        )
    _check_finite(matrix, "influence values")
    if how == "top":
        k = max(1, round(TOP_FRACTION * matrix.shape[1]))
        matrix = np.sort(matrix, axis=1)[:, -k:]
    elif how == "positive":
        matrix = matrix.clip(min=0)
    elif how == "negative":
        # From 0 down, not negated: a layer without negative entries scores 0.0, never -0.0.
        return 0.0 - matrix.clip(max=0).sum(axis=1)
    return np.asarray(matrix.sum(axis=1))


def name_layers(layers: NDArray[np.intp]) -> str:
    """Write layer numbers for a message: 'layer 3', 'layers 3, 4', at most eight of them."""
    shown = ", ".join(str(layer) for layer in layers[:8])
    more = f" and {len(layers) - 8} more" if len(layers) > 8 else ""
    return f"layer{'s' if len(layers) > 1 else ''} {shown}{more}"


def _float_array(values: ArrayLike, name: str) -> FloatArray:
    try:
        array = np.array(values)
        if array.size and array.dtype.kind not in "iuf":
            raise TypeError(f"their type is {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the {name} are not numbers in a regular array: {error}") from error


def _check_finite(array: FloatArray, name: str) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        layers = np.unique(np.nonzero(bad)[0])
        raise InputError(
            f"the {name} of {name_layers(layers)} are not finite (first: {array[bad][0]}); "
            f"every one must be a finite number"
        )
