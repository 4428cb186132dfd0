"""LiSSA (arXiv 1602.03943) in its deterministic form: a fixed point for H x = v; then I = G x.

    x <- x + (v - H x) / (lambda_max + lambda)

lambda_max is H's largest eigenvalue without lambda, so that each step shrinks the error by
1 - (lambda_k + lambda) / (lambda_max + lambda) in the k-th eigenvector: at DataInf's lambda, 1e4 to
4e5 times below lambda_max, it converges in no practical number of steps, and says so. From about
lambda = 0.01 lambda_max on it does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from layerif.influence.estimators.base import Estimator, Solution
from layerif.influence.estimators.block import Block, Hessian
from layerif.influence.options import Damping, SolveOptions
from layerif.influence.subspaces.base import generator_for

# Power iteration comes near lambda_max from below; half of it would do for the fixed point.
POWER_ITERATIONS = 50
POWER_TOLERANCE = 1e-3


def lissa(block: Block, dampings: Sequence[Damping], options: SolveOptions) -> list[Solution]:
    """Influence of every training sample through one block; one read of its gradients a step."""
    mean_square = block.mean_square()
    if mean_square == 0:
        return [Solution.of_silence(len(block.parts), block.samples) for _ in dampings]
    largest = largest_eigenvalue(block, options.seed)
    return [
        _iterate(block, damping.of(mean_square, block.size), largest, options)
        for damping in dampings
    ]


def _iterate(block: Block, ridge: float, largest: float, options: SolveOptions) -> Solution:
    if ridge == 0:
        return Solution.of_silence(len(block.parts), block.samples)
    hessian, v = Hessian(block, ridge), block.validation
    start = v.norm().item()
    goal = options.tolerance * start
    x = torch.zeros_like(v)
    residual, left, taken = v, start, 0
    while left > goal and taken < options.max_iterations:
        x.add_(residual, alpha=1 / (largest + ridge))
        residual = v - hessian @ x
        taken += 1
        before, left = left, residual.norm().item()
        if left >= before:
            break  # rounding allows no more
    return Solution.of(
        block.products(x),
        ridge,
        iterations=taken,
        residual=left / start if start else 0.0,
        converged=left <= goal,
    )


def largest_eigenvalue(block: Block, seed: int) -> float:
    """lambda_max of G^T G / n by power iteration, from a start drawn by seed and block name."""
    generator = generator_for(seed, block.name)
    start = torch.randn(block.size, generator=generator, dtype=torch.float64)
    direction = (start / start.norm()).to(block.validation.device)
    hessian, found = Hessian(block, 0.0), 0.0
    for _ in range(POWER_ITERATIONS):
        product = hessian @ direction
        # |H z| lies between the Rayleigh quotient and lambda_max.
        before, found = found, product.norm().item()
        if found - before <= POWER_TOLERANCE * found:
            break
        direction = product / found
    return found


LISSA = Estimator(iterative=True, sweep=lissa)
