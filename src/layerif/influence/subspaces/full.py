"""The weights themselves: no projection, and no gradient is ever formed for a single sample.

Norms come from the ghost identity <g_i, g_i> = sum_{t,s} (a_t . a_s)(e_t . e_s), products with a
vector and weighted sums from one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layerif.influence.subspaces.base import Matrix, SubspaceKind
from layerif.model.layers import Projection


@dataclass(frozen=True)
class FullWeights:
    """Every weight of every projection; biases are left out."""

    name = "full"
    formed = False

    @property
    def record(self) -> dict[str, Any]:
        return {}

    def matrices(self, projections: Sequence[Projection]) -> list[Matrix]:
        """The weight of every projection."""
        return [
            Matrix(projection.key, row, (projection.out_features, projection.in_features))
            for row, projection in enumerate(projections)
        ]


FULL = SubspaceKind(lambda _model, _options: FullWeights(), formed=False)
