"""SparseGPT (arXiv 2301.00774): prune columns in order, later columns making good the error."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from layerif.calibration.statistics import Factor, Hessians
from layerif.compress.compressor import Change
from layerif.compress.figures import Figures, output_energy, relative
from layerif.compress.pruning.selection import group_mask, smallest
from layerif.compress.pruning.targets import Target
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
        whole = output_energy(before, hessian)
        return Figures(relative(output_energy(before - after, hessian), whole), damping)

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
    upper, dead, pattern = factor.upper, factor.dead, target.pattern
    # Columns as rows: each is then one piece of memory.
    work = weight.T.contiguous()
    columns, rows = work.shape
    block, stride = BLOCK, STRIDE
    if pattern:
        stride = pattern.group * max(1, STRIDE // pattern.group)
        block = stride * max(1, BLOCK // stride)
    zeros, dead_columns = target.zeros, dead.tolist()
    squares = upper.diagonal().square()

    def saliency(here: slice) -> torch.Tensor:
        """(rows, columns) below every other that of dead columns, and below these of zeros."""
        found = work[here].square() / squares[here, None]
        found.masked_fill_(dead[here, None], -1).masked_fill_(work[here] == 0, -2)
        return found.T

    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        if pattern:
            mask = torch.zeros_like(work[begin:end], dtype=torch.bool)
        else:
            count = _share(zeros, rows, dead_columns[begin:], end - begin)
            # Ties go by rows of the weight, not by its columns.
            mask = smallest(saliency(slice(begin, end)).contiguous(), count).T.contiguous()
        errors = torch.zeros_like(work[begin:end])
        for start in range(begin, end, stride):
            stop = min(start + stride, end)
            for column in range(start, stop):
                if pattern and column % pattern.group == 0:
                    chosen = group_mask(saliency(slice(column, column + pattern.group)), pattern)
                    mask[column - begin : column - begin + pattern.group] = chosen.T
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
        # Zeros that are found behind are counted, so that blocks ahead get fewer.
        zeros = max(zeros - rows * (end - begin) + int(work[begin:end].count_nonzero()), 0)
    return work.T


def _share(zeros: int, rows: int, dead: list[bool], size: int) -> int:
    """How many of the zeros still to come go to the first `size` of the columns still to come.

    Weights of dead columns go first: where there are as many, all of them go, and the live columns
    share what is left, by their number.
    """
    own, every = sum(dead[:size]), sum(dead)
    if every * rows >= zeros:
        count = round(zeros * own / every) if every else 0
    else:
        live = len(dead) - every
        left = zeros - every * rows
        count = own * rows + (round(left * (size - own) / live) if live else 0)
    return min(count, size * rows)


SPARSEGPT = SparseGPT()
