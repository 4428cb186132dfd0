"""Layer scores: one number per layer, summed from the influence of every training sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.core.choices import Aggregation, check_choice
from layerif.errors import InputError

FloatArray = NDArray[np.float64]

TOP_FRACTION = 0.25


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
            f"the influence values have shape {matrix.shape}; expected "
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


def check_scores(scores: ArrayLike, *, name: str = "scores") -> FloatArray:
    """Return `scores` as a new float64 vector of shape (layers,), or say what it is not.

    Raises:
        InputError: not numbers, not one-dimensional, empty, or not finite somewhere; `name` is
            what the message calls them.
    """
    vector = _float_array(scores, name)
    if vector.ndim != 1 or not vector.size:
        raise InputError(
            f"the {name} have shape {vector.shape}; expected (layers,), "
            f"one number per layer and at least one layer"
        )
    _check_finite(vector, name)
    return vector


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
