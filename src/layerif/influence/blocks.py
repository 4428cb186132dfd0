"""Which trainable matrices make one block, and the influence through each block, one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from layerif.artifacts import BlockRecord
from layerif.artifacts.gradients import GradientsRecord
from layerif.core.checkpoint import Steps
from layerif.core.choices import BlockGranularity
from layerif.core.progress import note, progress
from layerif.errors import InputError, NumericalError
from layerif.influence.collecting import Gradients
from layerif.influence.estimators.base import EstimatorOptions, Solution
from layerif.influence.estimators.block import Block, Part
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.influence.estimators.sweep import sweep
from layerif.influence.passes import Step, finished
from layerif.influence.streaming import Groups
from layerif.influence.subspaces.base import Matrix


def group(record: GradientsRecord, block: BlockGranularity) -> dict[str, list[int]]:
    """For each block its name and the matrices in it, by their place among all."""
    groups: dict[str, list[int]] = {}
    for row, matrix in enumerate(record.matrices):
        projection = record.projections[matrix.projection]
        name = {
            "matrix": matrix.key,
            "projection": f"layers.{projection.layer}.{projection.name}",
            "layer": f"layers.{projection.layer}",
        }[block]
        groups.setdefault(name, []).append(row)
    return groups


def solve_blocks(
    gradients: Gradients, groups: Groups, options: EstimatorOptions, steps: Steps
) -> dict[str, list[Solution]]:
    """The solutions of every block by its name, one a damping; each block is a step.

    Args:
        gradients: that were collected.
        groups: as `group` gives them.
        options: the estimator, and at which dampings.
        steps: keeps the solutions, and shares them between processes.

    Raises:
        InputError: an estimator of the user's own gives a solution of another shape.
    """
    matrices = gradients.matrices

    def one(_number: int, name: str) -> Step:
        rows, means = groups[name], gradients.means
        parts = tuple(
            Part(m.key, means[row], m.shape, gradients.factors.get(m.key))
            for row, m in ((row, matrices[row]) for row in rows)
        )
        block = Block(name, parts, tuple(gradients.store.of(row) for row in rows))
        found: Step = {}
        try:
            swept = sweep(block, options.dampings, options)
        except NumericalError as error:
            error.keeps_steps = True  # the gradients are sound, and another damping may do
            raise
        for number, solution in enumerate(swept):
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
    estimator = ESTIMATORS.find(options.name)
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
