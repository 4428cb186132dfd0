"""The exact inverse, in float64: the oracle of the other estimators.

    I = (K / n + lambda I)^-1 c,  K = G G^T, c = G v          where n <= d
    I = G x,  x = (G^T G / n + lambda I)^-1 v                  otherwise

Both are (M + lambda I) y = b with the same eigenvalues other than 0. One damping takes a Cholesky
factorisation, several share one eigendecomposition; each solution is refined by its own residual.
At DataInf's lambda and n < d it saturates: where v is near the mean training gradient, the sum of I
over the samples is near n in every block, which tells layers apart no more. Compare at a larger
lambda, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from layerif.errors import NumericalError
from layerif.influence.estimators.base import Estimator, Solution
from layerif.influence.estimators.block import Block
from layerif.influence.options import Damping, SolveOptions

REFINEMENTS = 3

Solver = Callable[[torch.Tensor], torch.Tensor]


def exact(block: Block, dampings: Sequence[Damping], options: SolveOptions) -> list[Solution]:
    """Influence of every training sample through one block; memory of three min(n, d)^2 matrices.

    Raises:
        NumericalError: lambda is too small beside the gradients for the matrix to be factorised.
    """
    by_samples = block.samples <= block.size
    matrix, right = _by_samples(block) if by_samples else _by_entries(block)
    mean_square = matrix.trace().item()
    ridges = [damping.of(mean_square, block.size) for damping in dampings]
    if not any(ridges):
        return [Solution.of_silence(len(block.parts), block.samples) for _ in dampings]
    if len(ridges) == 1:
        solvers = [_cholesky(matrix, ridges[0], block.name)]
    else:
        solvers = _eigenvectors(matrix, ridges)
    finish = _finish_by_samples if by_samples else _finish_by_entries
    solutions = []
    for ridge, solver in zip(ridges, solvers, strict=True):
        if ridge == 0:
            solutions.append(Solution.of_silence(len(block.parts), block.samples))
            continue
        found, rest = _refined(matrix, ridge, right, solver)
        by_part, influence, left = finish(block, matrix, ridge, found, rest)
        residual = left / block.validation.norm().item() if left else 0.0
        converged = residual <= options.tolerance
        solutions.append(
            Solution(by_part, influence, ridge, residual=residual, converged=converged)
        )
    return solutions


def exact_workspace(shapes: Sequence[tuple[int, int]], samples: int) -> int:
    """Bytes beside the gradients: the matrix, its damped copy and its factor."""
    order = min(samples, sum(out * columns for out, columns in shapes))
    return 3 * 8 * order**2


def _by_samples(block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """K / n and c; one read, by columns."""
    v = block.validation
    gram = v.new_zeros(block.samples, block.samples)
    dots = v.new_zeros(block.samples)
    for columns, piece in block.columns():
        gram.addmm_(piece, piece.T, alpha=1 / block.samples)
        dots.addmv_(piece, v[columns])
    return gram, dots


def _by_entries(block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """G^T G / n and v; one read, by rows."""
    v = block.validation
    covariance = v.new_zeros(block.size, block.size)
    for _, rows in block.rows():
        covariance.addmm_(rows.T, rows, alpha=1 / block.samples)
    return covariance, v


def _cholesky(matrix: torch.Tensor, ridge: float, name: str) -> Solver:
    damped = matrix.clone()
    damped.diagonal().add_(ridge)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        raise NumericalError(
            f"at lambda = {ridge:.3g} the Hessian of block {name} is singular to within rounding "
            f"(its largest eigenvalue is near {matrix.trace().item():.3g}); raise the damping"
        )
    return lambda right: torch.cholesky_solve(right[:, None], lower)[:, 0]


def _eigenvectors(matrix: torch.Tensor, ridges: Sequence[float]) -> list[Solver]:
    values, vectors = torch.linalg.eigh(matrix)
    values.clamp_(min=0)  # but for rounding none is negative

    def solver(ridge: float) -> Solver:
        return lambda right: vectors @ ((vectors.T @ right) / (values + ridge))

    return [solver(ridge) for ridge in ridges]


def _refined(
    matrix: torch.Tensor, ridge: float, right: torch.Tensor, solver: Solver
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solution of (matrix + ridge I) y = right, refined while that helps, and what it leaves."""

    def rest_of(y: torch.Tensor) -> torch.Tensor:
        return right - matrix @ y - ridge * y

    y = solver(right)
    rest = rest_of(y)
    for _ in range(REFINEMENTS):
        further = y + solver(rest)
        less = rest_of(further)
        if less.norm() >= rest.norm():
            break
        y, rest = further, less
    return y, rest


def _finish_by_samples(
    block: Block, matrix: torch.Tensor, ridge: float, found: torch.Tensor, rest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Influence by part and in all, and |H x - v|, where x = (v - G^T I / n) / lambda."""
    # H x - v = G^T rest / (n lambda).
    residual = (rest @ matrix @ rest / block.samples).clamp(min=0).sqrt().item() / ridge
    if len(block.parts) == 1:
        return found[None], found, residual
    x = block.validation.clone()
    for rows, piece in block.rows():
        x.addmv_(piece.T, found[rows], alpha=-1 / block.samples)
    return block.products(x / ridge), found, residual


def _finish_by_entries(
    block: Block, _matrix: torch.Tensor, _ridge: float, found: torch.Tensor, rest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    by_part = block.products(found)
    return by_part, by_part.sum(0), rest.norm().item()


EXACT = Estimator(sweep=exact, workspace=exact_workspace)
