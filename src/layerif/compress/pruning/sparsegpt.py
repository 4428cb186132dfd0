"""SparseGPT (arXiv 2301.00774): prune columns in order, later columns making good the error."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from layerif.calibration.hessians import Factor, Hessians
from layerif.compress.compressor import Change
from layerif.compress.pruning.base import Figures, Target, relative
from layerif.compress.pruning.selection import smallest, smallest_of_groups
from layerif.model.layers import Projection

# Columns of which the zeros are chosen at once.
BLOCK = 128
# Columns within a block that take errors one by one; those behind take them all at once.
STRIDE = 16


class SparseGPT:
    """Saliency W^2 / diag(U)^2, U the upper Cholesky factor of the inverse Hessian.

    Unlike other pruners it changes the weights that stay.
    """

    statistics = Hessians

    def prune(self, projection: Projection, statistics: Hessians, target: Target) -> Figures:
        weight = projection.weight
        hessian = statistics.mean(projection)
        before = weight.to(hessian.device, hessian.dtype, copy=True)
        damping = None
        if target.zeros:
            factor = statistics.factor(projection)
            damping = factor.damping
            weight.copy_(sparsegpt(before, factor, target))
        after = weight.to(hessian.device, hessian.dtype)
        whole = _output(before, hessian)
        return Figures(relative(_output(before - after, hessian), whole), damping)

    def prunable(
        self, projection: Projection, original: torch.Tensor, statistics: Hessians
    ) -> Refitting:
        return Refitting(original, statistics.factor(projection))


@dataclass(frozen=True, eq=False)
class Refitting:
    """SparseGPT on one projection, which refits the weights that stay whenever one goes.

    So a weight that comes back does not come back alone: what the others had taken over from it
    goes with it, and that mostly decides whether it is worth having. Weights taken by themselves
    say the wrong thing here: of many projections even the wrong sign.

    Attributes:
        original: (out, in) weights before pruning.
        factor: of the inputs' Hessian.
    """

    original: torch.Tensor
    factor: Factor

    def at(self, level: int) -> torch.Tensor:
        """(out, in) the weights with `level` of them zero, in the factor's dtype."""
        upper = self.factor.upper
        return sparsegpt(self.original.to(upper.device, upper.dtype), self.factor, Target(level))

    def change(self, before: int, after: int) -> Change:
        """What all weights change by, with fewer zeros after than before."""
        change = self.at(after) - self.at(before)
        change = change.to(self.original.device, self.original.dtype)
        return lambda: change


def sparsegpt(weight: torch.Tensor, factor: Factor, target: Target) -> torch.Tensor:
    """The pruned weights, those that stay changed so that the outputs change least.

    Without a pattern each block of 128 columns has its share of the zeros that are still to come,
    chosen over all its rows at once before its columns are gone through: weights that are zero
    first, then those of dead columns, then by saliency; among equals the lower row, and then the
    lower column. With one, each group is chosen when its first column is reached.

    Args:
        weight: (out, in), of the factor's dtype.
        factor: of the inputs' Hessian.
        target: zeros, and the pattern they form.

    Returns:
        (out, in), as many zeros as asked for; more where weights that were zero stay so.
    """
    upper, dead = factor.upper, factor.dead
    # Columns as rows: each is then one piece of memory.
    work = weight.T.contiguous()
    columns, rows = work.shape
    block, stride = BLOCK, STRIDE
    if target.pattern:
        group = target.pattern.group
        stride = group * max(1, STRIDE // group)
        block = stride * max(1, BLOCK // stride)
    budget = _Budget(target.zeros, rows, dead)
    squares = upper.diagonal().square()
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        if target.pattern is None:
            saliency = _ranked(work[begin:end], squares[begin:end], dead[begin:end])
            # Ties go by rows of the weight, not by its columns.
            mask = smallest(saliency.T.contiguous(), budget.of(begin, end)).T.contiguous()
        else:
            mask = torch.zeros_like(work[begin:end], dtype=torch.bool)
        errors = torch.zeros_like(work[begin:end])
        for start in range(begin, end, stride):
            stop = min(start + stride, end)
            for column in range(start, stop):
                if target.pattern and column % target.pattern.group == 0:
                    here = slice(column, column + target.pattern.group)
                    saliency = _ranked(work[here], squares[here], dead[here]).T
                    count = target.pattern.group - target.pattern.keep
                    chosen = smallest_of_groups(saliency, count, target.pattern.group)
                    mask[column - begin : column - begin + target.pattern.group] = chosen.T
                gone, value = mask[column - begin], work[column]
                error = torch.mul(value, gone, out=errors[column - begin])
                error /= upper[column, column]
                value.masked_fill_(gone, 0)
                if column + 1 < stop:
                    work[column + 1 : stop].addr_(upper[column, column + 1 : stop], error, alpha=-1)
            if stop < end:
                done = errors[start - begin : stop - begin]
                work[stop:end].addmm_(upper[start:stop, stop:end].T, done, alpha=-1)
        if end < columns:
            work[end:].addmm_(upper[begin:end, end:].T, errors, alpha=-1)
        budget.spend(begin, end, rows * (end - begin) - int(work[begin:end].count_nonzero()))
    return work.T


@dataclass
class _Budget:
    """Zeros still to come, shared among the blocks still to come by their size.

    Weights of dead columns go first: where there are as many, all of them go, and the live columns
    share what is left. Zeros that are found behind are counted, so that blocks ahead get fewer.
    """

    zeros: int
    rows: int
    dead: torch.Tensor

    def __post_init__(self) -> None:
        self._dead = self.dead.tolist()

    def of(self, begin: int, end: int) -> int:
        """Zeros for the block of these columns."""
        own_dead, all_dead = sum(self._dead[begin:end]), sum(self._dead[begin:])
        own_live = end - begin - own_dead
        all_live = len(self._dead) - begin - all_dead
        if all_dead * self.rows >= self.zeros:
            count = round(self.zeros * own_dead / all_dead) if all_dead else 0
        else:
            left = self.zeros - all_dead * self.rows
            live = round(left * own_live / all_live) if all_live else 0
            count = own_dead * self.rows + live
        return min(count, (end - begin) * self.rows)

    def spend(self, begin: int, end: int, zeros: int) -> None:
        """Take note of the zeros of a block that is done."""
        self.zeros = max(self.zeros - zeros, 0)


def _ranked(work: torch.Tensor, squares: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    """(columns, rows) saliency; below every other that of dead columns, and below these zeros."""
    saliency = work.square() / squares[:, None]
    saliency.masked_fill_(dead[:, None], -1)
    return saliency.masked_fill_(work == 0, -2)


def _output(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """tr(W H W^T) as float64: the squared norm of W X, up to a factor of all."""
    return (weight @ hessian).mul_(weight).sum(dtype=torch.float64)


SPARSEGPT = SparseGPT()
