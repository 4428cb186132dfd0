"""The range of each group: its scale and zero point.

A range begins as wide as the group's weights, 0 included, and both of its ends are shrunk alike.
Where a group has its minimum in place of a zero point, 0 is not included, and the ends are shrunk
towards the middle. Among the shrinks from 1 to 0.6 that one is taken whose rounded weights lose
least,

    sum_j n_j^2 (w_j - q(w_j))^2,

n_j being the norm of input feature j over the calibration text. Among equals the widest is taken.
A symmetric range has one value more on one of its sides: both sides are tried.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch

from layerif.compress.quantization.grid import SCALES, Coded
from layerif.compress.quantization.options import GridOptions

SHRINKS = tuple(1 - step / 50 for step in range(21))
# Weights looked at together, so that all that is made of them stays near the processor.
CHUNK = 1 << 17
# The smallest scale of 16 bits that is not zero: for groups of zeros.
LEAST = 2.0**-24


class Ranges(NamedTuple):
    """Of groups, (groups, rows) each: scales, and zero points as floats.

    These are whole numbers, or where a group has a minimum, - minimum / scale.
    """

    scales: torch.Tensor
    zeros: torch.Tensor


def find_ranges(
    weights: torch.Tensor,
    squares: torch.Tensor | None,
    bits: int,
    grid: GridOptions,
) -> Ranges:
    """Scale and zero point of each group.

    Args:
        weights: (groups, width, rows) in float32 or better, as `grouped` fills them up.
        squares: (groups, width) n_j^2 of the inputs, at least 0; None for plain minimum to maximum.
        bits: of a code.
        grid: how weights become integers.

    Returns:
        (groups, rows) each, in the dtype of the weights.
    """
    found = Ranges(*(torch.empty_like(weights[:, 0]) for _ in Ranges._fields))
    groups, width, rows = weights.shape
    across = min(rows, max(1, CHUNK // width))
    together = max(1, CHUNK // (width * across))
    for first, group in product(range(0, rows, across), range(0, groups, together)):
        here = (slice(group, group + together), slice(first, first + across))
        part = weights[here[0], :, here[1]].contiguous()
        of = None if squares is None else squares[here[0]].to(weights.dtype)
        own = _searched(part, of, bits, grid)
        for whole, piece in zip(found, own, strict=True):
            whole[here] = piece
    return found


def _searched(
    weights: torch.Tensor,
    squares: torch.Tensor | None,
    bits: int,
    grid: GridOptions,
) -> Ranges:
    """The ranges of a few groups."""
    codes, middle, dtype = 2**bits - 1, 2 ** (bits - 1), SCALES[grid.scales]
    symmetric, with_minimum = grid.symmetric, grid.with_minimum
    low, high = weights.amin(dim=1), weights.amax(dim=1)
    if not with_minimum:
        low, high = low.clamp_(max=0), high.clamp_(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    # A negative scale gives the one more value that a symmetric grid has below 0 to those above.
    signs = (1, -1) if symmetric else (1,)
    tried = [(1.0, 1)] if squares is None else list(product(SHRINKS, signs))
    shrink, sign = (low.new_tensor(each)[:, None, None] for each in zip(*tried, strict=True))
    # (tried, groups, rows)
    scales = ((high - low) * (shrink / codes)).to(dtype).to(weights.dtype).clamp_(min=LEAST)
    if symmetric:
        zeros = torch.full_like(scales, middle)
        scales *= sign
    elif with_minimum:
        minima = ((high + low) - (high - low) * shrink) / 2
        zeros = minima.to(dtype).to(weights.dtype).neg_() / scales
    else:
        zeros = (low * -shrink / scales).round_().clamp_(0, codes)
    if squares is None:
        return Ranges(scales[0], zeros[0])
    lost = torch.empty_like(scales)
    place, nearest = torch.empty_like(weights), torch.empty_like(weights)
    for each, inverse, zero in zip(lost, scales.reciprocal(), zeros, strict=True):
        # In units of the scale: where each weight lies among the codes, and how far from its own.
        torch.addcmul(zero.unsqueeze(1), weights, inverse.unsqueeze(1), out=place)
        torch.round(place, out=nearest).clamp_(0, codes).sub_(place).square_()
        torch.bmm(squares.unsqueeze(1), nearest, out=each.unsqueeze(1))
    # The first of equals.
    chosen = lost.mul_(scales.square()).argmin(dim=0, keepdim=True)
    return Ranges(scales.gather(0, chosen)[0], zeros.gather(0, chosen)[0])


def to_codes(
    weights: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int
) -> torch.Tensor:
    """The nearest codes of weights, as floats; all of one shape, or of shapes that broadcast."""
    return (weights / scales).add_(zeros).round_().clamp_(0, 2**bits - 1)


def stored_offsets(ranges: Ranges, grid: GridOptions) -> torch.Tensor | None:
    """(groups, rows) what is stored beside the scales: zero points, minima, or nothing."""
    if grid.symmetric:
        return None
    if grid.with_minimum:  # exactly what the zero points were made of
        return (ranges.zeros * ranges.scales).neg_().to(SCALES[grid.scales])
    return ranges.zeros.to(torch.uint8)


def coded(bits: int, width: int, codes: torch.Tensor, ranges: Ranges, grid: GridOptions) -> Coded:
    """Codes (out, in) with scales and offsets as they are stored."""
    offsets = stored_offsets(ranges, grid)
    return Coded(
        bits,
        width,
        codes,
        ranges.scales.T.to(SCALES[grid.scales]).contiguous(),
        None if offsets is None else offsets.T.contiguous(),
    )
