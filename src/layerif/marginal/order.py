"""In which order a saliency takes the weights of a projection, worked out once for any sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from layerif.choices import PruningMethod, check_choice
from layerif.pruning.base import ranked
from layerif.pruning.wanda import wanda_saliency


@dataclass(frozen=True, eq=False)
class RemovalOrder:
    """The weights of one projection from the least to the most salient of their comparison group.

    Wanda (arXiv 2306.11695) compares within an output row, magnitude within the whole projection,
    which is then one long row. The first k weights of the order are those that go when k do, so
    what goes at a lower sparsity goes at a higher one, too. For Wanda they are `wanda_mask`'s. For
    SparseGPT, which chooses as it goes and within blocks of columns, they are those of the saliency
    that it begins with, |W_ij| / U_jj, within a row: near to what it takes, and not the same.

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
    def of(cls, weight: torch.Tensor, norms: torch.Tensor | None, method: PruningMethod) -> Self:
        """The order of a weight.

        Args:
            weight: (out, in), as it is before anything is pruned; it must not change while the
                order is in use.
            norms: (in,) |X_j|_2 of the inputs for Wanda, 1 / U_jj for SparseGPT; unused by
                magnitude.
            method: whose order.
        """
        check_choice(method, PruningMethod, "pruning method")
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

    def band(self, sparsity: float, delta: float) -> torch.Tensor:
        """(out, in) bool, true at the weights ranked between sparsity - delta and + delta.

        What lies below 0 or above 1 is left out.
        """
        first, last = (
            round(min(max(edge, 0.0), 1.0) * self.numel)
            for edge in (sparsity - delta, sparsity + delta)
        )
        return self.mask(last) & ~self.mask(first)


def _saliency(weights: torch.Tensor, norms: torch.Tensor | None) -> torch.Tensor:
    """|W| times the norms; zeros below every other, since they count as gone."""
    return ranked(weights, wanda_saliency(weights, weights.new_ones(1) if norms is None else norms))
