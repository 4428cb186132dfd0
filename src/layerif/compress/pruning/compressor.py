"""Pruning as a compressor: a level is the number of zeros of a projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch

from layerif.calibration.walk import walk
from layerif.compress.compressor import Compressible, put_back
from layerif.compress.pruning.base import Pruner
from layerif.compress.pruning.registry import PRUNERS
from layerif.compress.pruning.saving import refuse_packed
from layerif.model.layers import DecoderLayers
from layerif.model.modes import evaluation_mode


@dataclass(frozen=True, eq=False)
class PruningCompressor:
    """A model pruned from its original weights to any numbers of zeros, as `prune` would.

    Attributes:
        model: the causal LM.
        layers: its decoder layers.
        batches: calibration text, which the pruner's statistics come from.
        pruner: chooses the weights that go.
        originals: for each projection a copy of its weight as before, (out, in).
    """

    model: Any
    layers: DecoderLayers
    batches: Sequence[dict[str, torch.Tensor]]
    pruner: Pruner
    originals: Sequence[torch.Tensor]

    @classmethod
    @contextmanager
    def held(
        cls,
        model: Any,
        layers: DecoderLayers,
        batches: Sequence[dict[str, torch.Tensor]],
        options: Any,
    ) -> Iterator[Self]:
        """The weights of a model are free to change inside, and as before afterwards.

        Args:
            options: with the pruner's name as `method`.

        Raises:
            InputError: there is no such method, or a weight is quantised.
        """
        refuse_packed(layers.projections)
        pruner = PRUNERS.find(options.method)
        with put_back(layers.projections) as originals, evaluation_mode(model):
            yield cls(model, layers, batches, pruner, originals)

    def at(
        self,
        levels: Sequence[int],
        keep: Callable[[int, Compressible], Any] = lambda _row, _projection: None,
    ) -> list[Any]:
        """Prune every projection to its number of zeros, from the bottom up.

        A projection that `keep` keeps under SparseGPT keeps its Hessian's factor too.

        Raises:
            NumericalError: the inputs of a projection are not finite.
        """
        for row, original in enumerate(self.originals):
            self.set(row, original)
        kept = []
        for row, prunable in enumerate(self._prunable()):
            kept.append(keep(row, prunable))
            self.set(row, prunable.at(levels[row]))
        return kept

    def set(self, row: int, weight: torch.Tensor) -> None:
        """Give one projection other weights (out, in)."""
        self.layers.projections[row].weight.copy_(weight)

    def _prunable(self) -> Iterator[Compressible]:
        """Each projection with its inputs, in order, those below it being as they are then."""
        pruner, originals = self.pruner, iter(self.originals)
        if pruner.statistics is None:
            for projection in self.layers.projections:
                yield pruner.prunable(projection, next(originals), None)
            return
        for visit in walk(self.model, self.layers, self.batches):
            projections = self.layers.of(visit.index)
            statistics = pruner.statistics(projections)
            visit.observe(statistics)
            for projection in projections:
                yield pruner.prunable(projection, next(originals), statistics)
