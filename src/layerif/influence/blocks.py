"""Which trainable matrices make one block, and the influence through each block, one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from layerif.artifacts import BlockRecord
from layerif.core.checkpoint import Steps
from layerif.core.choices import BlockGranularity, check_choice
from layerif.core.progress import note, progress
from layerif.errors import InputError
from layerif.influence.estimators import (
    Block,
    EstimatorOptions,
    Factors,
    Part,
    Solution,
    find,
    sweep,
)
from layerif.influence.passes import Step, finished
from layerif.influence.store import GradientStore
from layerif.influence.subspaces import Matrix
from layerif.model.layers import Projection

# For each block its name, and the places of its matrices.
Groups = Mapping[str, Sequence[int]]


def group(
    matrices: Sequence[Matrix], projections: Sequence[Projection], block: BlockGranularity
) -> dict[str, list[int]]:
    """For each block its name and the matrices in it, by their place in `matrices`.

    Raises:
        InputError: there is no such granularity.
    """
    check_choice(block, BlockGranularity, "block")
    groups: dict[str, list[int]] = {}
    for row, matrix in enumerate(matrices):
        projection = projections[matrix.projection]
        name = {
            "matrix": matrix.key,
            "projection": projection.key,
            "layer": f"layers.{projection.layer}",
        }[block]
        groups.setdefault(name, []).append(row)
    return groups


def solve(
    groups: Groups,
    matrices: Sequence[Matrix],
    store: GradientStore,
    means: Sequence[torch.Tensor],
    options: EstimatorOptions,
    steps: Steps,
    factors: Mapping[str, Sequence[Factors]],
) -> dict[str, list[Solution]]:
    """The solutions of every block by its name, one a damping; each block is a step.

    Args:
        groups: as `group` gives them.
        matrices: of the subspace.
        store: the training gradients.
        means: for each matrix (d,), the mean validation gradient.
        steps: keeps the solutions, and shares them between processes.
        factors: of each block's matrices, where they were collected.

    Raises:
        InputError: an estimator of the user's own gives a solution of another shape.
    """

    def one(_number: int, name: str) -> Step:
        rows = groups[name]
        own = factors.get(name, [None] * len(rows))
        parts = tuple(
            Part(matrices[row].key, means[row], matrices[row].shape, given)
            for row, given in zip(rows, own, strict=True)
        )
        block = Block(name, parts, tuple(store.of(row) for row in rows))
        found: Step = {}
        for number, solution in enumerate(sweep(block, options.dampings, options)):
            _check_shape(solution, block, options.name)
            found |= {f"{number}/{key}": tensor for key, tensor in solution.tensors().items()}
        return found

    solutions = {}
    with progress("influence", len(groups)) as advance:
        for name, kept, _ in finished(list(groups), "influence", steps, one):
            solutions[name] = [
                Solution.of_tensors(_under(f"{number}/", kept))
                for number in range(len(options.dampings))
            ]
            advance()
    return solutions


def _check_shape(solution: Solution, block: Block, estimator: str) -> None:
    wanted = (len(block.parts), block.samples)
    if solution.by_part.shape != wanted or solution.influence.shape != wanted[1:]:
        raise InputError(
            f"the estimator {estimator} gives block {block.name} influence of shape "
            f"{tuple(solution.influence.shape)} and {tuple(solution.by_part.shape)} by part; right "
            f"would be {wanted[1:]} and {wanted}"
        )


def _under(prefix: str, step: Step) -> Step:
    return {key.removeprefix(prefix): t for key, t in step.items() if key.startswith(prefix)}


def workspace(
    groups: Groups, matrices: Sequence[Matrix], samples: int, options: EstimatorOptions
) -> int:
    """Bytes that the estimator takes beside the gradients: in the block where it takes most, and
    for what it keeps of all.
    """
    estimator = find(options.name)
    if estimator.workspace is None:
        return 0
    needed = estimator.workspace
    # Factors by position are gathered for all blocks at once, in float64.
    factors = sum(8 * (m.shape[0] ** 2 + m.shape[1] ** 2) for m in matrices)
    return (factors if estimator.by_position else 0) + max(
        needed([matrices[row].shape for row in rows], samples) for rows in groups.values()
    )


def record(solution: Solution) -> BlockRecord:
    """What the artifact keeps of a solution beside the influence."""
    return BlockRecord(
        damping=solution.damping,
        iterations=solution.iterations,
        residual=solution.residual,
        converged=solution.converged,
    )


def note_unconverged(solutions: Mapping[str, Solution], options: EstimatorOptions) -> None:
    """Say which blocks an iterative estimator has not solved."""
    residuals = {
        name: solution.residual or 0.0
        for name, solution in solutions.items()
        if not solution.converged
    }
    if residuals:
        worst = max(residuals, key=residuals.__getitem__)
        steps = solutions[worst].iterations
        note(
            f"{options.name} did not reach the residual {options.tolerance:g} in {len(residuals)} "
            f"of {len(solutions)} blocks; the largest is {residuals[worst]:.2g}, in {worst}"
            + (
                f" after {steps} iterations: raise them, or the damping"
                if steps
                else ": raise the damping"
            )
        )
