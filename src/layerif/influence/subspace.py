"""The subspace in which gradients are compared: a fresh LoRA on every projection.

With B = 0, a LoRA leaves the model as it is and grad(A) = 0, while grad(B) = (alpha/r) dL/dW A^T is
a random projection of the full gradient (METHOD 1b): no fine-tuning is needed first.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch

from layerif.errors import InputError
from layerif.model.layers import Projection


@dataclass(frozen=True)
class FreshLora:
    """LoRA of one rank on every projection, A as PEFT initialises it, seeded per module name."""

    rank: int = 8
    alpha: float = 16.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise InputError(
                f"a LoRA needs a rank of at least 1 and a positive alpha, not rank {self.rank} and "
                f"alpha {self.alpha}"
            )

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def down(self, projection: Projection) -> torch.Tensor:
        """A (rank, in_features), float32: kaiming_uniform(a = sqrt 5), i.e. U(-1, 1) / sqrt(in).

        Drawn from a generator of its own, so that it depends on the seed and the projection's name
        and on nothing else.
        """
        digest = hashlib.sha256(f"{self.seed}:{projection.key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        bound = 1 / math.sqrt(projection.in_features)
        down = torch.empty(self.rank, projection.in_features)
        return down.uniform_(-bound, bound, generator=generator)

    def gradient_size(self, projection: Projection) -> int:
        """d: entries of grad(B), the trainable block of the projection."""
        return projection.out_features * self.rank
