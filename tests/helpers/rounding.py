"""Rounding to a grid by its definition, in float64, one group and one column after another."""

from __future__ import annotations

import itertools

import torch

from layerif.compress.quantization.options import GridOptions


def grid(**options):
    return GridOptions(**({"group_size": 32} | options))


def best_range(group, squares, bits, *, symmetric=False, weighted=True, minimum=False):
    """(scale, zero point) of one group (width,): every shrink tried, weight by weight.

    With a minimum, the zero point is what makes it the lowest value.
    """
    most = 2**bits - 1
    low, high = group.min().item(), group.max().item()
    if not minimum:
        low, high = min(0.0, low), max(0.0, high)
    if symmetric:
        high = max(high, -low)
        low = -high
    tried = []
    signs = (1, -1) if symmetric and weighted else (1,)
    for step, sign in itertools.product(range(21 if weighted else 1), signs):
        shrink = 1 - step / 50
        scale = torch.tensor((high - low) * shrink / most).to(torch.float16).double().item()
        scale = sign * max(scale, 2.0**-24)
        zero = 2 ** (bits - 1) if symmetric else round(-low * shrink / scale)
        zero = min(max(zero, 0), most)
        if minimum:
            lowest = (high + low) / 2 - (high - low) / 2 * shrink
            zero = -torch.tensor(lowest).to(torch.float16).double().item() / scale
        lost = sum(
            n * (w - (code_of(w, scale, zero, bits) - zero) * scale) ** 2
            for w, n in zip(group.tolist(), squares.tolist(), strict=True)
        )
        tried.append((lost, step, scale, zero))
    least = min(tried)[0]
    return next((s, z) for lost, _, s, z in tried if lost <= least * (1 + 1e-12))


def code_of(value, scale, zero, bits):
    return min(max(round(value / scale + zero), 0), 2**bits - 1)


def rounded(weight, squares, bits, width, **how):
    """(out, in) every weight by itself."""
    out = torch.empty_like(weight)
    for row, begin in itertools.product(range(len(weight)), range(0, weight.shape[1], width)):
        here = slice(begin, begin + width)
        scale, zero = best_range(weight[row, here], squares[here], bits, **how)
        out[row, here] = torch.tensor(
            [(code_of(w, scale, zero, bits) - zero) * scale for w in weight[row, here].tolist()]
        )
    return out


def refitted(weight, hessian, bits, width, *, by_diagonal, damping=0.01, **how):
    """(out, in) column after column, what is still free changed by the explicit inverse of it."""
    rows, columns = weight.shape
    squares, hessian = hessian.diagonal().clone(), hessian.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    hessian += damping * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    work, out, ranges = weight.clone(), torch.empty_like(weight), {}

    def look(begin):
        here = slice(begin, begin + width)
        for row in range(rows):
            ranges[row, begin] = best_range(work[row, here], squares[here], bits, **how)

    order = list(range(columns))
    if by_diagonal:
        order.sort(key=lambda j: -squares[j].item())
        for begin in range(0, columns, width):
            look(begin)
    for done, column in enumerate(order):
        begin = column - column % width
        if (0, begin) not in ranges:
            look(begin)
        free = order[done:]
        inverse = torch.linalg.inv(hessian[free][:, free])
        for row in range(rows):
            scale, zero = ranges[row, begin]
            value = work[row, column].item()
            out[row, column] = (code_of(value, scale, zero, bits) - zero) * scale
            work[row, free] -= (value - out[row, column]) / inverse[0, 0] * inverse[0]
    return out
