"""Round to nearest: each weight by itself, in the range of its group that loses least on a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerif.calibration.statistics import InputNorms, Statistics
from layerif.compress.figures import relative
from layerif.compress.quantization.base import Quantizable
from layerif.compress.quantization.grid import Coded, group_width, grouped, grouped_squares
from layerif.compress.quantization.options import GridOptions
from layerif.compress.quantization.ranges import Ranges, coded, find_ranges, to_codes
from layerif.model.layers import Projection

# Rows that are rounded together, so that little is held beside the codes.
ROWS = 4096


class RoundToNearest:
    """Errors are those of features without correlation: norms are all that is known of a text."""

    def statistics(self, grid: GridOptions) -> Callable[[Sequence[Projection]], Statistics] | None:
        return InputNorms if grid.ranges == "weighted" else None

    def quantizable(
        self, projection: Projection, original: torch.Tensor, statistics: Any, grid: GridOptions
    ) -> Rounded:
        squares = None
        if statistics is not None:
            squares = statistics.norms(projection).square().to(original.device)
        return Rounded(original, grid, squares)


@dataclass(frozen=True, eq=False)
class Rounded(Quantizable):
    """A projection rounded to nearest.

    Attributes:
        squares: (in,) float64 |X_j|^2 over the calibration text; None without one.
    """

    squares: torch.Tensor | None

    def coded(self, bits: int) -> Coded:
        return rtn(self.original, self.squares, bits, self.grid)

    def error(self, weight: torch.Tensor) -> float | None:
        if self.squares is None:
            return None
        exact = torch.promote_types(self.original.dtype, torch.float32)
        whole, lost = (
            w.square().sum(dim=0, dtype=torch.float64) @ self.squares
            for w in (self.original.to(exact), self.original.to(exact) - weight.to(exact))
        )
        return relative(lost, whole)


def rtn(weight: torch.Tensor, squares: torch.Tensor | None, bits: int, grid: GridOptions) -> Coded:
    """Each weight's nearest value, in ranges chosen by `squares`.

    Args:
        weight: (out, in).
        squares: (in,) |X_j|^2; None for ranges from minimum to maximum.
        bits: 2 to 8.
        grid: how weights become integers.
    """
    rows, columns = weight.shape
    width = group_width(columns, grid.group_size)
    exact = torch.promote_types(weight.dtype, torch.float32)
    by_group = None
    if squares is not None:
        by_group = grouped_squares(over_mean(squares).to(exact), width)
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    found = []
    for part, nearest in zip(*(each.split(ROWS) for each in (weight, codes)), strict=True):
        groups = grouped(part.T.to(exact).contiguous(), width)
        own = find_ranges(groups, by_group, bits, grid)
        scales, zeros = (each.unsqueeze(1) for each in own)
        nearest.copy_(to_codes(groups, scales, zeros, bits).flatten(0, 1)[:columns].T)
        found.append(own)
    ranges = Ranges(*(torch.cat(each, dim=1) for each in zip(*found, strict=True)))
    return coded(bits, width, codes, ranges, grid)


def over_mean(squares: torch.Tensor) -> torch.Tensor:
    """Squares over their mean, so that sums of them neither overflow nor vanish in float32."""
    mean = squares.mean()
    return squares / mean if bool(mean > 0) else squares


RTN = RoundToNearest()
