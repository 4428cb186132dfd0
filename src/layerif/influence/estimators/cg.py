"""Conjugate gradients (Hestenes and Stiefel, 1952) on H x = v; then I = G x.

Nothing of size n x n or d x d is formed, so it works where `exact` does not fit. It needs about as
many steps as H has distinct eigenvalues, at most n + 1 but for rounding.
"""

from __future__ import annotations

import math

import torch

from layerif.influence.estimators.base import Estimator, Solution
from layerif.influence.estimators.block import Block, Hessian
from layerif.influence.options import SolveOptions


def cg(block: Block, options: SolveOptions) -> Solution:
    """Influence of every training sample through one block; one read of its gradients a step.

    The residual reported is taken from H x - v itself and not from the recursion, which drifts from
    it: where the recursion alone has converged, the steps start again from x.
    """
    ridge = options.dampings[0].of(block.mean_square(), block.size)
    if ridge == 0:
        return Solution.of_silence(len(block.parts), block.samples)
    start = block.validation.norm().item()
    if start == 0:
        nothing = block.products(block.validation)
        return Solution.of(nothing, ridge, iterations=0, residual=0.0)
    hessian, v = Hessian(block, ridge), block.validation / start
    x, taken = _descend(hessian, v, options.tolerance, options.max_iterations)
    residual = v - hessian @ x
    left, gain = residual.norm().item(), math.inf
    # Begun again while that pays: at least half of the residual, or rounding allows no more.
    while left > options.tolerance and taken < options.max_iterations and gain > 2:
        step, steps = _descend(hessian, residual, options.tolerance, options.max_iterations - taken)
        taken += steps
        rest = v - hessian @ (x + step)
        gain = left / rest.norm().item()
        if gain > 1:
            x, residual, left = x + step, rest, rest.norm().item()
    return Solution.of(
        block.products(start * x),
        ridge,
        iterations=taken,
        residual=left,
        converged=left <= options.tolerance,
    )


def _descend(hessian: Hessian, v: torch.Tensor, goal: float, most: int) -> tuple[torch.Tensor, int]:
    """x with H x ~ v, begun at 0, and the steps taken until the recursion's residual is `goal`."""
    x = torch.zeros_like(v)
    residual, direction = v.clone(), v.clone()
    square = residual.square().sum().item()
    for taken in range(1, most + 1):
        product = hessian @ direction
        length = square / (direction @ product).item()
        x.add_(direction, alpha=length)
        residual.sub_(product, alpha=length)
        before, square = square, residual.square().sum().item()
        if square**0.5 <= goal:
            return x, taken
        direction.mul_(square / before).add_(residual)
    return x, most


CG = Estimator(cg, iterative=True)
