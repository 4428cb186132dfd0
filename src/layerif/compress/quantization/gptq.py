"""GPTQ (arXiv 2210.17323): round column after column, later columns making good the error.

With U^T U = H^-1, U upper triangular, a column j that is rounded by d_j = w_j - q(w_j) changes each
later column k by -d_j U_jk / U_jj: the update of all that is still free which loses least,
-d_j [H_F^-1]_jk / [H_F^-1]_jj with F = {j, j + 1, ...}.

Groups are those of the stored order of columns, whatever order they are rounded in, so nothing but
scales and zero points has to be stored. In the given order a group's range is chosen when its
first column is reached, from the weights as they are by then; by diagonal before all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerif.calibration.statistics import Factor, Hessians, Statistics
from layerif.compress.figures import output_energy, relative
from layerif.compress.quantization.base import Quantizable
from layerif.compress.quantization.grid import Coded, group_width, grouped, grouped_squares
from layerif.compress.quantization.options import GridOptions
from layerif.compress.quantization.ranges import Ranges, coded, find_ranges
from layerif.compress.quantization.rtn import over_mean
from layerif.model.layers import Projection
from layerif.plans.maps.stored import groups_of

# Columns whose errors are handed to all later ones at once.
BLOCK = 128
# Columns within a block that take errors one by one; those behind take them all at once.
STRIDE = 16


class Gptq:
    """Rounding by the Hessian of the inputs, and refitting what is still to be rounded."""

    def statistics(self, grid: GridOptions) -> Callable[[Sequence[Projection]], Statistics] | None:
        return Hessians

    def quantizable(
        self, projection: Projection, original: torch.Tensor, statistics: Any, grid: GridOptions
    ) -> RefittedRounding:
        factor = statistics.factor(projection, ordered=grid.column_order == "diagonal")
        return RefittedRounding(original, grid, factor, statistics.mean(projection))


@dataclass(frozen=True, eq=False)
class RefittedRounding(Quantizable):
    """A projection rounded by GPTQ.

    Attributes:
        factor: of the inputs' Hessian.
        hessian: (in, in) not damped, in the given order of columns.
    """

    factor: Factor
    hessian: torch.Tensor

    def coded(self, bits: int) -> Coded:
        weight = self.original.to(self.hessian.device, self.hessian.dtype)
        return gptq(weight, self.factor, self.hessian.diagonal(), bits, self.grid)

    def error(self, weight: torch.Tensor) -> float:
        before = self.original.to(self.hessian.device, self.hessian.dtype)
        after = weight.to(self.hessian.device, self.hessian.dtype)
        whole, lost = (output_energy(w, self.hessian) for w in (before, before - after))
        return relative(lost, whole)

    @property
    def damping(self) -> float:
        return self.factor.damping


def gptq(
    weight: torch.Tensor, factor: Factor, squares: torch.Tensor, bits: int, grid: GridOptions
) -> Coded:
    """The rounded weights, each column's error made good by those after it.

    Args:
        weight: (out, in), of the factor's dtype.
        factor: of the inputs' Hessian; columns are rounded in its order.
        squares: (in,) proportional to |X_j|^2, which ranges are chosen by.
        bits: 2 to 8.
        grid: how weights become integers.
    """
    upper, order = factor.upper, factor.order
    rows, columns = weight.shape
    width = group_width(columns, grid.group_size)
    most = 2**bits - 1
    by_group = grouped_squares(over_mean(squares).to(weight.dtype), width)

    def ranges(weights: torch.Tensor, of: torch.Tensor) -> Ranges:
        of_text = of if grid.ranges == "weighted" else None
        return find_ranges(weights, of_text, bits, grid)

    # Columns as rows: each is then one piece of memory.
    work = (weight if order is None else weight[:, order]).T.contiguous()
    places = list(range(columns)) if order is None else order.tolist()
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    # (groups, rows); in the given order filled group by group.
    if order is not None:
        scales, zeros = ranges(grouped(weight.T.contiguous(), width), by_group)
    else:
        scales, zeros = (work.new_empty(groups_of(columns, width), rows) for _ in range(2))
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        errors = torch.empty_like(work[begin:end])
        for start in range(begin, end, STRIDE):
            stop = min(start + STRIDE, end)
            if order is None and start % width == 0:
                group = start // width
                now = grouped(work[start : start + width], width)
                scales[group], zeros[group] = (
                    each[0] for each in ranges(now, by_group[group : group + 1])
                )
            for column in range(start, stop):
                group = places[column] // width
                scale, zero, value = scales[group], zeros[group], work[column]
                code = torch.div(value, scale).add_(zero).round_().clamp_(0, most)
                codes[places[column]] = code
                error = torch.sub(value, code.sub_(zero).mul_(scale), out=errors[column - begin])
                error /= upper[column, column]
                if column + 1 < stop:
                    work[column + 1 : stop].addr_(upper[column, column + 1 : stop], error, alpha=-1)
            if stop < end:
                done = errors[start - begin : stop - begin]
                work[stop:end].addmm_(upper[start:stop, stop:end].T, done, alpha=-1)
        if end < columns:
            work[end:].addmm_(upper[begin:end, end:].T, errors, alpha=-1)
    return coded(bits, width, codes.T.contiguous(), Ranges(scales, zeros), grid)


GPTQ = Gptq()
