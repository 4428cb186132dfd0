"""Gradients of a batch's samples as factors: formed only where that is asked for.

In one matrix g_i = scale * sum_t e_it a_it^T, e (B, T, out) and a (B, T, in). What influence needs
of it comes without the (B, out, in) gradients:

    |g_i|^2       = scale^2 sum_{t,s} (e_it . e_is)(a_it . a_is)      (the ghost identity)
    <g_i, V>      = scale   sum_t e_it . (V a_it)
    sum_i w_i g_i = scale   sum_{i,t} w_i e_it a_it^T

`norms`, `times` and `add_weighted` do the same for gradients that are formed, so that an estimator
which goes by them alone takes either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch


@dataclass(frozen=True, eq=False)
class FactoredGradients:
    """Per-sample gradients of one matrix; float32, or float64 for a float64 model.

    Attributes:
        errors: e (B, T, out).
        inputs: a (B, T, in).
        scale: factor of every gradient.
    """

    errors: torch.Tensor
    inputs: torch.Tensor
    scale: float

    @classmethod
    def of(cls, errors: torch.Tensor, inputs: torch.Tensor, rows: int, scale: float) -> Self:
        """From what hooks see. Some architectures flatten rows and positions for their MLP, so both
        are brought to B rows.
        """
        exact = torch.promote_types(errors.dtype, torch.float32)
        return cls(
            errors.reshape(rows, -1, errors.shape[-1]).to(exact),
            inputs.reshape(rows, -1, inputs.shape[-1]).to(exact),
            scale,
        )

    @property
    def size(self) -> int:
        """d: entries of the matrix."""
        return self.errors.shape[-1] * self.inputs.shape[-1]

    def reached(self) -> torch.Tensor:
        """(B, T) bool, the positions that the sample's loss reaches.

        Their error is not rounding noise beside the sample's largest. A query that attends to one
        position alone, say, has none but noise, which may be zero by another kernel. Noise is up to
        1e-15 of the largest error in float64 and 1e-5 in float32.
        """
        sizes = self.errors.abs().amax(2)
        return sizes > sizes.amax(1, keepdim=True) * torch.finfo(sizes.dtype).eps ** (2 / 3)

    def formed(self) -> torch.Tensor:
        """(B, out, in) the gradients themselves."""
        return torch.bmm(self.errors.transpose(1, 2), self.inputs).mul_(self.scale)

    def norms(self) -> torch.Tensor:
        """(B,) float64 |g_i|^2, by the cheaper of the ghost identity and one gradient at a time."""
        positions, out, columns = *self.errors.shape[1:], self.inputs.shape[-1]
        if positions * (out + columns) <= 2 * out * columns:
            pairs = torch.bmm(self.errors, self.errors.transpose(1, 2))
            pairs.mul_(torch.bmm(self.inputs, self.inputs.transpose(1, 2)))
            squares = pairs.sum((1, 2), dtype=torch.float64)
        else:
            pieces = zip(self.errors, self.inputs, strict=True)
            squares = torch.stack([(e.T @ a).square_().sum(dtype=torch.float64) for e, a in pieces])
        # Rounding alone can bring the ghost identity below 0.
        return (squares * self.scale**2).clamp_(min=0)

    def times(self, vector: torch.Tensor) -> torch.Tensor:
        """(B,) float64 <g_i, V> for V (out * in,)."""
        matrix = vector.to(self.inputs).view(self.errors.shape[-1], self.inputs.shape[-1])
        reached = self.inputs @ matrix.T  # (B, T, out)
        return reached.mul_(self.errors).sum((1, 2), dtype=torch.float64) * self.scale

    def weighted(self, weights: torch.Tensor) -> torch.Tensor:
        """(out * in,) sum_i w_i g_i for w (B,)."""
        scaled = self.errors * (weights.to(self.errors) * self.scale)[:, None, None]
        return (scaled.flatten(0, 1).T @ self.inputs.flatten(0, 1)).flatten()


@dataclass(frozen=True, eq=False)
class FactoredRows:
    """Rows (b, d) of a block's gradients, each part in factors.

    The factors may lie on any device; what is made of them here is on the CPU, where the vectors
    between passes are.
    """

    parts: Sequence[FactoredGradients]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.parts[0].errors), sum(part.size for part in self.parts)

    def formed(self) -> torch.Tensor:
        """(b, d) float64 the rows themselves."""
        return torch.cat([part.formed().flatten(1).double().cpu() for part in self.parts], 1)

    def norms(self) -> torch.Tensor:
        return torch.stack([part.norms().cpu() for part in self.parts]).sum(0)

    def split_times(self, x: torch.Tensor) -> torch.Tensor:
        """(parts, b, k) share of each part in rows times x (d, k)."""
        pieces = zip(self.parts, columns_of(self.parts), strict=True)
        return torch.stack(
            [torch.stack([p.times(column) for column in x[own].T], -1).cpu() for p, own in pieces]
        )

    def add_weighted(self, total: torch.Tensor, weights: torch.Tensor) -> None:
        for part, own in zip(self.parts, columns_of(self.parts), strict=True):
            for column, each in enumerate(weights.T):
                total[own, column] += part.weighted(each).to(total)


def columns_of(parts: Sequence[Any]) -> list[slice]:
    """Which columns of a block belong to each of its parts, by their sizes."""
    ends = accumulate(part.size for part in parts)
    return [slice(end - part.size, end) for end, part in zip(ends, parts, strict=True)]


Gradients = torch.Tensor | FactoredRows


def norms(rows: Gradients) -> torch.Tensor:
    """(b,) |g_i|^2."""
    if isinstance(rows, FactoredRows):
        return rows.norms()
    return torch.linalg.vector_norm(rows, dim=1).square()


def times(rows: Gradients, x: torch.Tensor) -> torch.Tensor:
    """(b,) <g_i, x> for x (d,)."""
    if isinstance(rows, FactoredRows):
        return rows.split_times(x[:, None]).sum(0)[:, 0]
    return rows @ x


def add_weighted(total: torch.Tensor, rows: Gradients, weights: torch.Tensor) -> None:
    """Add sum_i w_ik g_i to the columns of `total` (d, k), for w (b, k)."""
    if isinstance(rows, FactoredRows):
        rows.add_weighted(total, weights)
    else:
        total.addmm_(rows.T, weights)


def split_times(rows: Gradients, x: torch.Tensor, columns: Sequence[slice]) -> torch.Tensor:
    """(parts, b, ...) share of each part's columns in rows times x (d, ...)."""
    if isinstance(rows, FactoredRows):
        shares = rows.split_times(x if x.ndim == 2 else x[:, None])
        return shares if x.ndim == 2 else shares[..., 0]
    if len(columns) == 1:
        return (rows @ x)[None]
    return torch.stack([rows[:, own] @ x[own] for own in columns])
