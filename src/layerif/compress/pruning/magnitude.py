"""Magnitude pruning: the weights of least absolute value go, whatever text the model sees."""

from __future__ import annotations

from typing import Any

import torch

from layerif.compress.figures import Figures
from layerif.compress.pruning.base import Masked
from layerif.compress.pruning.selection import group_mask, smallest
from layerif.compress.pruning.targets import Target
from layerif.model.layers import Projection


class Magnitude:
    """The smallest |W| of a projection, or of each group where there is a pattern."""

    statistics = None

    def prune(self, projection: Projection, statistics: Any, target: Target) -> Figures:
        projection.weight.masked_fill_(magnitude_mask(projection.weight, target), 0)
        return Figures()

    def prunable(self, projection: Projection, original: torch.Tensor, statistics: Any) -> Masked:
        return Masked(original, lambda zeros: magnitude_mask(original, Target(zeros)))


def magnitude_mask(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """(out, in) bool, which weights go: exactly `target.zeros`, those with the smallest |W_ij|.

    Among equal weights the lower row, and then the lower column, goes first.
    """
    size = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    return group_mask(size, target.pattern) if target.pattern else smallest(size, target.zeros)


MAGNITUDE = Magnitude()
