"""Magnitude pruning: the weights of least absolute value go, whatever text the model sees."""

from __future__ import annotations

from typing import Any

import torch

from layerif.compress.pruning.base import Figures, Masked, Target, group_mask
from layerif.compress.pruning.selection import smallest
from layerif.model.layers import Projection


class Magnitude:
    """The smallest |W| of a projection, or of each group where there is a pattern."""

    statistics = None

    def prune(self, projection: Projection, statistics: Any, target: Target) -> Figures:
        weight = projection.weight
        weight.masked_fill_(magnitude_mask(weight, target), 0)
        return Figures()

    def prunable(self, projection: Projection, original: torch.Tensor, statistics: Any) -> Masked:
        return Masked(original, lambda zeros: magnitude_mask(original, Target(zeros)))


def magnitude_mask(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """Which weights go: exactly `target.zeros`, those with the smallest |W_ij|.

    Among equal weights the lower row, and then the lower column, goes first.

    Args:
        weight: (out, in).

    Returns:
        (out, in) bool, true where the weight is to become zero.
    """
    size = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    return group_mask(size, target.pattern) if target.pattern else smallest(size, target.zeros)


MAGNITUDE = Magnitude()
