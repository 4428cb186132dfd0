"""Two-sided random projection of the full gradient: P_out^T (dL/dW) P_in (LoGra, arXiv 2405.13954).

The smallest subspace: k x k numbers a projection, whatever its size.
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


@dataclass(frozen=True)
class TwoSided:
    """Gaussian projections of a gradient's rows and columns to `size` each.

    Their entries have variance 1/size, so that inner products of gradients are kept in the mean. A
    side that is no larger than `size` is left as it is.
    """

    size: int = 16
    seed: int = 0

    name = "two_sided"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"a projection needs a size of at least 1, not {self.size}")

    @property
    def record(self) -> dict[str, Any]:
        return asdict(self)

    def matrices(self, projections: Sequence[Projection]) -> list[Matrix]:
        """The projected weight of every projection.

        Raises:
            InputError: the size is above both sides of one, which would not be projected at all.
        """
        found = []
        for row, projection in enumerate(projections):
            key, out, into = projection.key, projection.out_features, projection.in_features
            if self.size > max(out, into):
                raise InputError(
                    f"the size {self.size} is above both sides of {key} ({out} x {into}), which "
                    f"would not be projected: it can be at most {max(out, into)}"
                )
            shape = (min(out, self.size), min(into, self.size))
            left, right = self._map(f"{key}:out", out), self._map(f"{key}:in", into)
            found.append(Matrix(key, row, shape, left, right))
        return found

    def _map(self, key: str, features: int) -> torch.Tensor | None:
        if features <= self.size:
            return None
        draw = torch.randn(self.size, features, generator=generator_for(self.seed, key))
        return draw / math.sqrt(self.size)


TWO_SIDED = SubspaceKind(lambda _model, o: TwoSided(o.size, o.seed))
