"""DataInf (arXiv 2310.00902): influence with the mean and the inverse of the Hessian swapped.

    H = mean_i g_i g_i^T + lambda I,   H^-1 ~ mean_i (g_i g_i^T + lambda I)^-1

For one block with gradients G (n x d), the mean validation gradient v, c = G v, r_i = |g_i|^2:

    I = (c - G w) / lambda,   w = (1/n) G^T (c / (lambda + r))

which is METHOD's form with K w = G (G^T w) taken in the order that costs n d and not n^2 d.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Rows brought to float64 at a time: the copy stays small beside the gradients.
CHUNK = 256


def datainf(
    gradients: torch.Tensor, validation: torch.Tensor, damping: float
) -> tuple[torch.Tensor, float]:
    """Influence of every training sample on the validation loss through one block.

    Args:
        gradients: G (n, d), any floating dtype; read in float64.
        validation: v (d,), mean gradient of the validation samples.
        damping: lambda = damping * mean(r) / d.

    Returns:
        I (n,) float64, the predicted decrease of the validation loss when a sample is upweighted,
        and lambda. Where every gradient of the block is zero, I is zero and lambda 0.
    """
    samples, size = gradients.shape
    v = validation.double()
    norms = torch.empty(samples, dtype=torch.float64, device=gradients.device)
    dots = torch.empty_like(norms)
    for rows, chunk in _chunks(gradients):
        norms[rows] = chunk.square().sum(1)
        dots[rows] = chunk @ v
    ridge = damping * norms.mean().item() / size
    if ridge == 0:
        return torch.zeros_like(dots), 0.0
    weights = dots / (ridge + norms) / samples
    w = torch.zeros_like(v)
    for rows, chunk in _chunks(gradients):
        w += chunk.T @ weights[rows]
    influence = torch.empty_like(dots)
    for rows, chunk in _chunks(gradients):
        influence[rows] = (dots[rows] - chunk @ w) / ridge
    return influence, ridge


def _chunks(gradients: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    for first in range(0, len(gradients), CHUNK):
        rows = slice(first, first + CHUNK)
        yield rows, gradients[rows].double()
