"""Weights as integers: w = (code - zero point) * scale, with a scale for each group of a row.

Or w = code * scale + minimum, where a group has its minimum in place of a zero point.

Codes are 0 to 2^bits - 1. A group is `group_size` neighbouring inputs of one row; that at the row's
end may be shorter. The zero point is a code too, so 0 is always among a group's values; on a
symmetric grid it is 2^(bits - 1) everywhere, and not stored. Values are exact in float32: the
product of an integer of at most 8 bits and a 16-bit float.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from layerif.plans.maps.stored import groups_of

SCALES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Coded:
    """One projection's weights as integers.

    Attributes:
        bits: of a code, 2 to 8.
        width: inputs of a group.
        codes: (out, in) uint8.
        scales: (out, groups) in 16 bits.
        zeros: (out, groups) uint8, the zero points, or the minima in 16 bits; None on a symmetric
            grid.
    """

    bits: int
    width: int
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    def decoded(self) -> torch.Tensor:
        """(out, in) float32, the weights, exactly."""
        columns, groups = self.codes.shape[1], self.scales.shape[1]
        filled = torch.nn.functional.pad(self.codes, (0, groups * self.width - columns))
        whole = filled.to(torch.float32).unflatten(1, (groups, self.width))
        scales = self.scales.unsqueeze(2).to(torch.float32)
        if self.zeros is None:
            whole.sub_(2 ** (self.bits - 1)).mul_(scales)
        elif self.zeros.is_floating_point():
            whole.mul_(scales).add_(self.zeros.unsqueeze(2).to(torch.float32))
        else:
            whole.sub_(self.zeros.unsqueeze(2).to(torch.float32)).mul_(scales)
        return whole.flatten(1)[:, :columns]


def group_width(in_features: int, group_size: int) -> int:
    """Inputs of a group: the whole row for 0, and no more than a row has."""
    return min(group_size or in_features, in_features)


def grouped(columns: torch.Tensor, width: int) -> torch.Tensor:
    """(groups, width, rows) of weights whose columns come first, (columns, rows).

    The last group is filled up with its last column, which leaves its range as it is.
    """
    count, rows = columns.shape
    missing = groups_of(count, width) * width - count
    filled = torch.cat([columns, columns[-1:].expand(missing, rows)]) if missing else columns
    return filled.reshape(-1, width, rows)


def grouped_squares(squares: torch.Tensor, width: int) -> torch.Tensor:
    """(groups, width) of (columns,) what columns count for; what fills up counts for nothing."""
    missing = groups_of(len(squares), width) * width - len(squares)
    return torch.nn.functional.pad(squares, (0, missing)).reshape(-1, width)
