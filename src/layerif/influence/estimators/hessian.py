"""Products with H = G^T G / n + lambda I, which is never formed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from layerif.influence.estimators.block import Block


@dataclass(frozen=True, eq=False)
class Hessian:
    """H of one block."""

    block: Block
    damping: float

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """H x (d,) for x (d,): one read of the gradients, each piece used twice."""
        product = self.damping * x
        for _, rows in self.block.rows():
            product.addmv_(rows.T, rows @ x, alpha=1 / self.block.samples)
        return product
