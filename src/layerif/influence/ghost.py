"""Gradients of a batch's samples in one matrix, as factors: formed only where that is asked for.

g_i = scale * sum_t e_it a_it^T, e (B, T, out) and a (B, T, in). What influence needs of it comes
without the (B, out, in) gradients:

    |g_i|^2    = scale^2 sum_{t,s} (e_it . e_is)(a_it . a_is)      (the ghost identity)
    <g_i, V>   = scale   sum_t e_it . (V a_it)
    sum_i w_i g_i = scale sum_{i,t} w_i e_it a_it^T
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

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

    def formed(self) -> torch.Tensor:
        """(B, out, in) the gradients themselves."""
        return torch.bmm(self.errors.transpose(1, 2), self.inputs).mul_(self.scale)

    def squared_norms(self) -> torch.Tensor:
        """(B,) float64 |g_i|^2, by the cheaper of the ghost identity and forming one sample's."""
        positions, out, columns = *self.errors.shape[1:], self.inputs.shape[-1]
        if positions * (out + columns) <= 2 * out * columns:
            pairs = torch.bmm(self.errors, self.errors.transpose(1, 2))
            pairs.mul_(torch.bmm(self.inputs, self.inputs.transpose(1, 2)))
            norms = pairs.sum((1, 2), dtype=torch.float64)
        else:
            norms = torch.stack(
                [
                    (errors.T @ inputs).square_().sum(dtype=torch.float64)
                    for errors, inputs in zip(self.errors, self.inputs, strict=True)
                ]
            )
        # Rounding alone can bring the ghost identity below 0.
        return (norms * self.scale**2).clamp_(min=0)

    def products(self, vector: torch.Tensor) -> torch.Tensor:
        """(B,) float64 <g_i, V> for V (out, in)."""
        reached = self.inputs @ vector.to(self.inputs).T  # (B, T, out)
        return (reached.mul_(self.errors)).sum((1, 2), dtype=torch.float64) * self.scale

    def weighted_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """(out, in) sum_i w_i g_i for w (B,)."""
        scaled = self.errors * (weights.to(self.errors) * self.scale)[:, None, None]
        return scaled.flatten(0, 1).T @ self.inputs.flatten(0, 1)
