"""What SparseGPT makes of one projection at any sparsity, its inputs being given."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from layerif.calibration.hessians import Factor
from layerif.compress.pruning.base import Target
from layerif.compress.pruning.sparsegpt import sparsegpt
from layerif.search.order import Band, edges


@dataclass(frozen=True, eq=False)
class Refitting:
    """SparseGPT on one projection, which refits the weights that stay whenever one goes.

    So a weight that comes back does not come back alone: what the others had taken over from it
    goes with it, and that mostly decides whether it is worth having. Weights taken by themselves,
    as in `RemovalOrder`, say the wrong thing here: of many projections even the wrong sign.

    Attributes:
        weight: (out, in) before anything is pruned; it must not change while this is in use.
        factor: of the inputs' Hessian.
    """

    weight: torch.Tensor
    factor: Factor

    def at(self, count: int) -> torch.Tensor:
        """(out, in) the weights with `count` of them zero, in the factor's dtype."""
        upper = self.factor.upper
        return sparsegpt(self.weight.to(upper.device, upper.dtype), self.factor, Target(count))

    def band(self, sparsity: float, delta: float) -> Band:
        """What its weights change by between sparsity + delta and sparsity - delta."""
        first, last = edges(sparsity, delta, self.weight.numel())
        change = self.at(first) - self.at(last)
        return Band(last - first, change.to(self.weight.device, self.weight.dtype))
