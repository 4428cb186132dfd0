"""What a pruner is: statistics that it asks for, and one projection pruned in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from layerif.calibration.statistics import Statistics
from layerif.compress.compressor import Change, Compressible
from layerif.compress.figures import Figures
from layerif.compress.pruning.targets import Target
from layerif.model.layers import Projection


class Pruner(Protocol):
    """A way to choose the weights that go."""

    @property
    def statistics(self) -> Callable[[Sequence[Projection]], Statistics] | None:
        """Makes the statistics of a layer's inputs; None where the method needs none."""

    def prune(self, projection: Projection, statistics: Any, target: Target) -> Figures:
        """Set weights of one projection to zero, in place.

        Args:
            statistics: what `statistics` made, after all calibration text; None without.
        """

    def prunable(
        self, projection: Projection, original: torch.Tensor, statistics: Any
    ) -> Compressible:
        """One projection pruned to any number of zeros, as a search needs it.

        Args:
            original: (out, in) its weight before pruning, which must not change meanwhile.
            statistics: as in `prune`.
        """


@dataclass(frozen=True, eq=False)
class Masked:
    """A projection whose pruner leaves the weights that stay as they are.

    Attributes:
        original: (out, in) weights before pruning.
        mask: (out, in) bool, which weights go, from their number; those that go stay gone where
            more go.
    """

    original: torch.Tensor
    mask: Callable[[int], torch.Tensor]

    def at(self, level: int) -> torch.Tensor:
        """(out, in) the weights with `level` zeros."""
        return self.original.masked_fill(self.mask(level), 0)

    def change(self, before: int, after: int) -> Change:
        """What comes back, at its original value, with fewer zeros; or what goes, with more."""
        if after > before:
            gone = self.mask(after) & ~self.mask(before)
            return lambda: self.original * gone.to(self.original.dtype).neg_()
        back = self.mask(before) & ~self.mask(after)
        return lambda: self.original * back
