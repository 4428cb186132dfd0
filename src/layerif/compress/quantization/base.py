"""What a quantiser is: statistics that it asks for, and one projection at any number of bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from layerif.calibration.statistics import Statistics
from layerif.compress.compressor import Change
from layerif.compress.quantization.grid import Coded
from layerif.compress.quantization.options import GridOptions
from layerif.model.layers import Projection
from layerif.plans.maps.stored import WHOLE


@dataclass(frozen=True, eq=False)
class Quantizable(ABC):
    """One projection with its inputs, rounded to any number of bits, from its original weights.

    Attributes:
        original: (out, in) weights before, which must not change meanwhile.
        grid: how weights become integers.
    """

    original: torch.Tensor
    grid: GridOptions

    @abstractmethod
    def coded(self, bits: int) -> Coded:
        """The weights as integers of 2 to 8 bits."""

    def error(self, weight: torch.Tensor) -> float | None:
        """|(W - W') X|^2 / |W X|^2 of other weights W' (out, in); None where no text is seen."""
        return None

    @property
    def damping(self) -> float | None:
        """The share of the Hessian's mean diagonal added to it; None without one."""
        return None

    def at(self, level: int) -> torch.Tensor:
        """(out, in) the weights at a number of bits; 16 for the original."""
        return self.original if level == WHOLE else self.coded(level).decoded()

    def change(self, before: int, after: int) -> Change:
        """What all weights change by between two numbers of bits; kept as integers until asked."""
        kept = [None if level == WHOLE else self.coded(level) for level in (before, after)]
        original = self.original

        def made() -> torch.Tensor:
            less, more = (original if one is None else one.decoded() for one in kept)
            return (more - less).to(original.dtype)

        return made


class Quantizer(Protocol):
    """A way to round weights."""

    def statistics(self, grid: GridOptions) -> Callable[[Sequence[Projection]], Statistics] | None:
        """Makes the statistics of a layer's inputs; None where the method needs none."""

    def quantizable(
        self, projection: Projection, original: torch.Tensor, statistics: Any, grid: GridOptions
    ) -> Quantizable:
        """One projection that can be rounded.

        Args:
            original: (out, in) its weight before, which must not change meanwhile.
            statistics: what `statistics` made, after all calibration text; None without.
        """
