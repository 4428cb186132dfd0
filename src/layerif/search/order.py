"""In which order a saliency takes the weights of a projection, worked out once for any sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch

from layerif.compress.pruning.base import ranked
from layerif.compress.pruning.wanda import wanda_saliency
from layerif.core.choices import SaliencyMethod, check_choice


@dataclass(frozen=True, eq=False)
class Band:
    """What a pruner changes of a projection between two sparsities.

    Attributes:
        width: weights that the less sparse of the two keeps more.
        marked: (out, in) bool, true at these weights, which then have their original values; or, of
            a pruner that changes others with them, the difference of all weights.
    """

    width: int
    marked: torch.Tensor

    def change(self, original: torch.Tensor) -> torch.Tensor:
        """(out, in) the weights at the lower sparsity less those at the higher one."""
        return original * self.marked if self.marked.dtype == torch.bool else self.marked


class Prunable(Protocol):
    """One projection with its inputs, pruned to any sparsity."""

    def band(self, sparsity: float, delta: float) -> Band:
        """What changes between sparsity - delta and + delta, as far as they lie within 0 to 1."""


def edges(sparsity: float, delta: float, numel: int) -> tuple[int, int]:
    """Zeros of a projection at sparsity - delta and + delta, as far as they lie within 0 to 1."""
    low, high = (min(max(edge, 0.0), 1.0) for edge in (sparsity - delta, sparsity + delta))
    return round(low * numel), round(high * numel)


@dataclass(frozen=True, eq=False)
class RemovalOrder:
    """The weights of one projection from the least to the most salient of their comparison group.

    Wanda (arXiv 2306.11695) compares within an output row, magnitude within the whole projection,
    which is then one long row. The first k weights of the order are those that go when k do, so
    what goes at a lower sparsity goes at a higher one, too. For Wanda they are `wanda_mask`'s.

    Attributes:
        shape: (out, in) of the projection.
        rows: (groups, members) the weights, group by group; a view where that is possible.
        norms: (members,) factor of each member's magnitude; None for 1.
        order: (groups, members) int32, of each group the places of its members.
    """

    shape: torch.Size
    rows: torch.Tensor
    norms: torch.Tensor | None
    order: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, norms: torch.Tensor | None, method: SaliencyMethod) -> Self:
        """The order of a weight.

        Args:
            weight: (out, in), as it is before anything is pruned; it must not change while the
                order is in use.
            norms: (in,) |X_j|_2 of the inputs for Wanda; unused by magnitude.
            method: whose order.
        """
        check_choice(method, SaliencyMethod, "pruning method")
        if method == "magnitude":
            rows, norms = weight.reshape(1, -1), None
        else:
            assert norms is not None
            rows = weight
        saliency = _saliency(rows, norms)
        return cls(weight.shape, rows, norms, saliency.argsort(dim=1, stable=True).int())

    @property
    def numel(self) -> int:
        return self.shape.numel()

    def mask(self, count: int) -> torch.Tensor:
        """(out, in) bool, true at the first `count` weights of the order."""
        each, extra = divmod(count, len(self.rows))
        mask = torch.zeros(self.rows.shape, dtype=torch.bool, device=self.rows.device)
        mask.scatter_(1, self.order[:, :each].long(), True)
        if extra:  # as `wanda_mask` has it: the rows where the next weight matters least
            following = self.order[:, each].long()
            next_ones = self.rows.gather(1, following[:, None])
            norms = None if self.norms is None else self.norms[following][:, None]
            chosen = _saliency(next_ones, norms)[:, 0].argsort(stable=True)[:extra]
            mask[chosen, following[chosen]] = True
        return mask.view(self.shape)

    def band(self, sparsity: float, delta: float) -> Band:
        """The weights ranked between sparsity - delta and + delta, within 0 to 1."""
        first, last = edges(sparsity, delta, self.numel)
        return Band(last - first, self.mask(last) & ~self.mask(first))


def _saliency(weights: torch.Tensor, norms: torch.Tensor | None) -> torch.Tensor:
    """|W| times the norms; zeros below every other, since they count as gone."""
    return ranked(weights, wanda_saliency(weights, weights.new_ones(1) if norms is None else norms))
