"""A fresh LoRA on every projection: no fine-tuning is needed first, and the model is unchanged.

With B = 0, grad(A) = 0, while grad(B) = (alpha/r) dL/dW A^T is a random projection of the full
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from layerif.errors import InputError
from layerif.influence.subspaces.base import Matrix, SubspaceKind, generator_for
from layerif.model.layers import Projection
from layerif.model.peft_adapters import check_rank


@dataclass(frozen=True)
class FreshLora:
    """LoRA of one rank on every projection, A as PEFT initialises it, seeded per module name."""

    rank: int = 8
    alpha: float = 16.0
    seed: int = 0

    name = "fresh_lora"

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise InputError(
                f"a LoRA needs a rank of at least 1 and a positive alpha, not rank {self.rank} and "
                f"alpha {self.alpha}"
            )

    @property
    def record(self) -> dict[str, Any]:
        return asdict(self)

    def down(self, projection: Projection) -> torch.Tensor:
        """A (rank, in_features), float32: kaiming_uniform(a = sqrt 5), i.e. U(-1, 1) / sqrt(in)."""
        bound = 1 / math.sqrt(projection.in_features)
        down = torch.empty(self.rank, projection.in_features)
        return down.uniform_(-bound, bound, generator=generator_for(self.seed, projection.key))

    def matrices(self, projections: Sequence[Projection]) -> list[Matrix]:
        """B of every projection.

        Raises:
            InputError: the rank is above a projection's smaller side.
        """
        check_rank(projections, self.rank)
        return [
            Matrix(
                key=projection.key,
                projection=row,
                shape=(projection.out_features, self.rank),
                right=self.down(projection),
                scale=self.alpha / self.rank,
            )
            for row, projection in enumerate(projections)
        ]


FRESH_LORA = SubspaceKind(lambda _model, o: FreshLora(o.rank, o.alpha, o.seed))
