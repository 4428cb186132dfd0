"""A model held at given sparsities, with its original weights at hand, and given back with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch

from layerif.calibration.hessians import Hessians
from layerif.calibration.statistics import InputNorms
from layerif.calibration.walk import walk
from layerif.compress.pruning.base import Target
from layerif.compress.pruning.registry import PRUNERS
from layerif.core.choices import PruningMethod
from layerif.model.layers import DecoderLayers
from layerif.model.modes import evaluation_mode
from layerif.search.order import Prunable, RemovalOrder
from layerif.search.refitting import Refitting

# Takes the row of a projection, and how it is pruned: a RemovalOrder, or by SparseGPT a Refitting.
See = Callable[[int, Prunable], None]


class OperatingPoint:
    """Projections pruned in place, to one list of sparsities after another.

    One copy of the projections' weights is kept. `held` gives them back to the bit.

    Attributes:
        model: the causal LM.
        layers: its decoder layers.
        originals: for each projection its weight as before, (out, in).
    """

    def __init__(
        self,
        model: Any,
        layers: DecoderLayers,
        batches: Sequence[dict[str, torch.Tensor]],
        method: PruningMethod,
    ) -> None:
        self.model = model
        self.layers = layers
        self._batches = batches
        self._method = method
        self.originals = [
            projection.weight.clone(memory_format=torch.contiguous_format)
            for projection in layers.projections
        ]

    @classmethod
    @contextmanager
    def held(
        cls,
        model: Any,
        layers: DecoderLayers,
        batches: Sequence[dict[str, torch.Tensor]],
        method: PruningMethod,
    ) -> Iterator[Self]:
        """The weights of the model are free to change inside, and as before afterwards.

        Args:
            model: a causal LM.
            layers: its decoder layers.
            batches: calibration text, which the pruner's statistics come from.
            method: how weights are pruned.
        """
        point = cls(model, layers, batches, method)
        try:
            with evaluation_mode(model):
                yield point
        finally:
            point.restore()

    @property
    def sizes(self) -> list[int]:
        """Parameters of each projection."""
        return [weight.numel() for weight in self.originals]

    def restore(self) -> None:
        """Every projection's weight as before."""
        for projection, original in zip(self.layers.projections, self.originals, strict=True):
            projection.weight.copy_(original)

    def prune(self, sparsities: Sequence[float], see: See = lambda _row, _order: None) -> None:
        """Prune every projection, from the original weights, to what `layerif prune` would give.

        Layer by layer, since the norms of a layer's inputs depend on the pruned layers below.

        Args:
            sparsities: one for each projection.
            see: is shown each projection as it can be pruned. It may keep a RemovalOrder; what it
                keeps of a Refitting keeps the layer's statistics too.

        Raises:
            NumericalError: the inputs of a projection are not finite.
        """
        self.restore()
        counts = [round(s * n) for s, n in zip(sparsities, self.sizes, strict=True)]
        pruner = PRUNERS.find(self._method)
        if pruner.statistics is None:
            for row in range(len(self.originals)):
                self._take_out_first(row, None, counts[row], see)
            return
        rows = {projection.key: row for row, projection in enumerate(self.layers.projections)}
        for visit in walk(self.model, self.layers, self._batches):
            projections = self.layers.of(visit.index)
            statistics = pruner.statistics(projections)
            visit.observe(statistics)
            for projection in projections:
                row = rows[projection.key]
                if isinstance(statistics, Hessians):
                    see(row, Refitting(self.originals[row], statistics.factor(projection)))
                    pruner.prune(projection, statistics, Target(counts[row]))
                else:
                    assert isinstance(statistics, InputNorms)
                    norms = statistics.norms(projection).to(projection.weight.device)
                    self._take_out_first(row, norms, counts[row], see)

    def _take_out_first(self, row: int, norms: torch.Tensor | None, count: int, see: See) -> None:
        order = RemovalOrder.of(
            self.originals[row], norms, "magnitude" if norms is None else "wanda"
        )
        see(row, order)
        self.take_out(row, order, count)

    def take_out(self, row: int, order: RemovalOrder, count: int) -> None:
        """Prune one projection anew: the first `count` weights of its order are zero."""
        weight = self.layers.projections[row].weight
        weight.copy_(self.originals[row]).masked_fill_(order.mask(count), 0)
