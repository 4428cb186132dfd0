"""What every subspace is: trainable matrices whose gradients come from a projection's two sides.

A projection y = W a has the gradient sum_t e_t a_t^T, e the gradient with respect to y. Each matrix
that a subspace puts at it has a gradient of the same form behind fixed maps,

    scale * sum_t (left e_t) (right a_t)^T

so one pair of hooks serves them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from layerif.influence.options import CollectOptions
    from layerif.model.layers import Projection


@dataclass(frozen=True, eq=False)
class Matrix:
    """One trainable matrix of a subspace.

    Attributes:
        key: its name, e.g. `layers.7.mlp.up_proj`, or `layers.7.mlp.up_proj.lora_A` where a
            projection has several.
        projection: the row of its projection in the list that the subspace was given.
        shape: (out, in) of the matrix, and so of its gradient.
        left: (out, out_features) map of the projection's output gradients; None for the identity.
        right: (in, in_features) map of its inputs; None for the identity.
        scale: factor of the gradient.
    """

    key: str
    projection: int
    shape: tuple[int, int]
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    scale: float = 1.0

    @property
    def size(self) -> int:
        """d: entries of the gradient."""
        return self.shape[0] * self.shape[1]


class Subspace(Protocol):
    """A choice of trainable matrices."""

    @property
    def name(self) -> str:
        """What records call it."""

    @property
    def record(self) -> dict[str, Any]:
        """All that its gradients depend on, as plain JSON values."""

    def matrices(self, projections: Sequence[Projection]) -> list[Matrix]:
        """The trainable matrices, projection by projection.

        Raises:
            InputError: the projections are not what the subspace needs.
        """


@dataclass(frozen=True)
class SubspaceKind:
    """A registered subspace.

    Attributes:
        open: the subspace of a model, as options ask for it.
        formed: whether its gradients are formed, so that they can be kept.
        of_adapter: whether it needs an adapter in the model.
    """

    open: Callable[[Any, CollectOptions], Subspace]
    formed: bool = True
    of_adapter: bool = False


def generator_for(seed: int, key: str) -> torch.Generator:
    """Random numbers that depend on the seed and a matrix's name, and on nothing else."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
