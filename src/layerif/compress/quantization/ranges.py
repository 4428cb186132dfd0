"""The range of each group: its scale and zero point.

A range begins as wide as the group's weights, 0 included, and both of its ends are shrunk alike:
among the shrinks from 1 to 0.6 that one is taken whose rounded weights lose least,

    sum_j n_j^2 (w_j - q(w_j))^2,

n_j being the norm of input feature j over the calibration text. Among equals the widest is taken.
A symmetric range has one value more on one of its sides: both sides are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch

SHRINKS = tuple(1 - step / 50 for step in range(21))
# Weights looked at together, so that all that is made of them stays near the processor.
CHUNK = 1 << 16
# The smallest scale of 16 bits that is not zero: for groups of zeros.
LEAST = 2.0**-24


class Ranges(NamedTuple):
    """Of groups, (...,) each: scales, and zero points that are whole numbers, as floats."""

    scales: torch.Tensor
    zeros: torch.Tensor


def find_ranges(
    groups: torch.Tensor,
    squares: torch.Tensor | None,
    bits: int,
    *,
    symmetric: bool,
    dtype: torch.dtype,
) -> Ranges:
    """Scale and zero point of each group.

    Args:
        groups: (rows, groups, width) weights in float32 or better; zeros where there are none.
        squares: (groups, width) n_j^2 of its inputs, at least 0; None for plain minimum to maximum.
        bits: of a code.
        symmetric: whether the zero point is the middle of the codes.
        dtype: of 16 bits, that the scales are exact in.

    Returns:
        (rows, groups) each, in the dtype of the weights.
    """
    shrinks = (1.0,) if squares is None else SHRINKS
    if squares is None:
        squares = groups.new_ones(groups.shape[1:])
    squares = squares.to(groups.dtype)
    rows = max(1, CHUNK // max(groups[0].numel(), 1))
    parts = [
        _searched(part, squares, shrinks, bits, symmetric, dtype) for part in groups.split(rows)
    ]
    scales, zeros = zip(*parts, strict=True)
    return Ranges(torch.cat(scales), torch.cat(zeros))


def _searched(
    groups: torch.Tensor,
    squares: torch.Tensor,
    shrinks: Sequence[float],
    bits: int,
    symmetric: bool,
    dtype: torch.dtype,
) -> Ranges:
    codes = 2**bits - 1
    low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    best = Ranges(torch.zeros_like(low), torch.zeros_like(low))
    least = torch.full_like(low, torch.inf)
    away, scaled = torch.empty_like(groups), torch.empty_like(groups)
    # A negative scale gives the one more value that a symmetric grid has below 0 to those above.
    signs = (1, -1) if symmetric and len(shrinks) > 1 else (1,)
    for shrink, sign in product(shrinks, signs):
        scales = ((high - low) * (shrink / codes)).to(dtype).to(groups.dtype).clamp_(min=LEAST)
        scales *= sign
        if symmetric:
            zeros = torch.full_like(scales, 2 ** (bits - 1))
        else:
            zeros = (low * -shrink / scales).round_().clamp_(0, codes)
        if len(shrinks) == 1:
            return Ranges(scales, zeros)
        # In units of the scale: the distance of each weight from its rounded one.
        torch.mul(groups, scales.reciprocal().unsqueeze(-1), out=scaled)
        torch.round(scaled, out=away)
        away.clamp_(-zeros.unsqueeze(-1), (codes - zeros).unsqueeze(-1)).sub_(scaled)
        lost = away.square_().mul_(squares).sum(dim=-1).mul_(scales.square())
        better = lost < least
        least = torch.where(better, lost, least)
        best = Ranges(
            torch.where(better, scales, best.scales), torch.where(better, zeros, best.zeros)
        )
    return best


def to_codes(
    weights: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int
) -> torch.Tensor:
    """The nearest codes of weights, as floats; all of one shape, or of shapes that broadcast."""
    return (weights / scales).round_().add_(zeros).clamp_(0, 2**bits - 1)
