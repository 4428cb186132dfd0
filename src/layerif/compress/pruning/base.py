"""What a pruner is: statistics that it asks for, and one projection pruned in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from layerif.calibration.statistics import Statistics
from layerif.compress.compressor import Change, Compressible
from layerif.compress.pruning.targets import Target
from layerif.model.layers import Projection


@dataclass(frozen=True, slots=True)
class Figures:
    """What a pruner can say of a projection it has pruned.

    Attributes:
        error: |(W - W') X|^2 / |W X|^2 over the calibration tokens; None where the method takes no
            statistics.
        damping: the share of the Hessian's mean diagonal added to it; None without a Hessian.
    """

    error: float | None = None
    damping: float | None = None


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
        """What comes back, at its original value, with fewer zeros after than before."""
        back = self.mask(before) & ~self.mask(after)
        return lambda: self.original * back


def relative(lost: torch.Tensor, whole: torch.Tensor) -> float:
    """lost / whole, and 0 where there was nothing to lose; not finite where one of them is not."""
    return 0.0 if bool(whole == 0) else float(lost.clamp(min=0) / whole)
