"""Cosine of the angle between a training gradient and the mean validation gradient.

I = c / (|v| sqrt r), each in [-1, 1]: a sample counts by its direction alone. The length is that of
the whole block, so the shares of a block's parts add up to the block's cosine.
"""

from __future__ import annotations

import torch

from layerif.influence.estimators.base import Estimator
from layerif.influence.estimators.grad_dot import DotPasses


class CosinePasses(DotPasses):
    """The cosines in one pass; that of a zero gradient is 0."""

    def _influence(self) -> torch.Tensor:
        lengths = self.validation.norm() * self._norms.sqrt()
        # Where a length is 0 the product is, too.
        return self._products / lengths.masked_fill(lengths == 0, 1)


COSINE = Estimator(damped=False, passes=CosinePasses)
