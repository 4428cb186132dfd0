"""A model held for compression: every level made from its original weights, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch

from layerif.calibration.statistics import Statistics
from layerif.calibration.walk import walk
from layerif.compress.compressor import Compressible, put_back
from layerif.model.layers import DecoderLayers, Projection
from layerif.model.modes import evaluation_mode

# Makes the statistics of a layer's inputs.
Taken = Callable[[Sequence[Projection]], Statistics]
# One projection, its original weight (out, in) and the layer's statistics.
Made = Callable[[Projection, torch.Tensor, Any], Compressible]


@dataclass(frozen=True, eq=False)
class HeldModel:
    """A model compressed from its original weights to any levels, by any method.

    Attributes:
        model: the causal LM.
        layers: its decoder layers.
        batches: calibration text, which statistics come from.
        statistics: that the method takes; None where it needs none.
        compressible: a projection as the method compresses it.
        originals: for each projection a copy of its weight as before, (out, in).
    """

    model: Any
    layers: DecoderLayers
    batches: Sequence[dict[str, torch.Tensor]]
    statistics: Taken | None
    compressible: Made
    originals: Sequence[torch.Tensor]

    @classmethod
    @contextmanager
    def by(
        cls,
        model: Any,
        layers: DecoderLayers,
        batches: Sequence[dict[str, torch.Tensor]],
        statistics: Taken | None,
        compressible: Made,
    ) -> Iterator[Self]:
        """The weights of a model are free to change inside, and as before afterwards."""
        with put_back(layers.projections) as originals, evaluation_mode(model):
            yield cls(model, layers, batches, statistics, compressible, originals)

    def at(
        self,
        levels: Sequence[int],
        keep: Callable[[int, Compressible], Any] = lambda _row, _projection: None,
    ) -> list[Any]:
        """Set every projection to its level, from the bottom up.

        What a projection that `keep` keeps holds of its inputs (norms, a Hessian's factor) is kept
        with it.

        Raises:
            NumericalError: the inputs of a projection are not finite.
        """
        for row, original in enumerate(self.originals):
            self.set(row, original)
        kept = []
        for row, compressible in enumerate(self._compressibles()):
            kept.append(keep(row, compressible))
            self.set(row, compressible.at(levels[row]))
        return kept

    def set(self, row: int, weight: torch.Tensor) -> None:
        """Give one projection other weights (out, in)."""
        self.layers.projections[row].weight.copy_(weight)

    def _compressibles(self) -> Iterator[Compressible]:
        """Each projection with its inputs, in order, those below it being as they are then."""
        originals = iter(self.originals)
        if self.statistics is None:
            for projection in self.layers.projections:
                yield self.compressible(projection, next(originals), None)
            return
        for visit in walk(self.model, self.layers, self.batches):
            projections = self.layers.of(visit.index)
            statistics = self.statistics(projections)
            visit.observe(statistics)
            for projection in projections:
                yield self.compressible(projection, next(originals), statistics)
