"""Sparsity plans that need no scores: what two published plans of LayerIF amount to."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from layerif.plans.kinds.base import Map
from layerif.plans.maps.scores import FloatArray


def spare_first(scores: ArrayLike, *, by: float = 0.2) -> FloatArray:
    """Fewer zeros in the first layer, by a fraction of its weights, and as many in all others."""
    return -by * (np.arange(np.size(scores)) == 0)


def prune_last(scores: ArrayLike, *, by: float = 0.2) -> FloatArray:
    """More zeros in the last layer, by a fraction of its weights, and as many in all others."""
    return by * (np.arange(np.size(scores)) == np.size(scores) - 1)


SPARE_FIRST, PRUNE_LAST = (
    Map(function, exact=False, scored=False) for function in (spare_first, prune_last)
)
