"""From gradients to LayerScores: block by block, each by one inverse Hessian."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from layerif.artifacts import BlockRecord, LayerScores, ScoringRecord
from layerif.artifacts.gradients import GradientsRecord
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.choices import BlockGranularity
from layerif.core.options import takes
from layerif.core.progress import note, progress
from layerif.errors import InputError, NumericalError
from layerif.influence.estimators.base import Solution
from layerif.influence.estimators.block import Block, Part
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.influence.keeping import Step, finished
from layerif.influence.options import SolveOptions
from layerif.influence.store import Gradients
from layerif.influence.subspaces.base import Matrix
from layerif.influence.sweeping import swept

# Seconds that a block takes to solve, from which on it is kept: writing it takes about as long.
WORTH = 0.05
# For each block its name, and the places of its matrices among all.
Groups = Mapping[str, Sequence[int]]


@takes(SolveOptions)
def solve(
    gradients: Gradients, *, options: SolveOptions, steps: Steps | None = None
) -> LayerScores:
    """Influence of every training sample through each layer, from gradients that were collected.

    No model is run.

    Args:
        gradients: of `collect`, or kept by `layerif score --keep-gradients` and opened again.
        options: the estimator, its damping, and what one inverse Hessian covers.
        steps: keeps finished blocks; None keeps nothing.

    Raises:
        InputError: the estimator needs what was not collected.
        NumericalError: a block cannot be solved; names it.
    """
    began = time.perf_counter()
    options.check_sweep()
    if ESTIMATORS.find(options.estimator).by_position and not gradients.factors:
        raise InputError(
            f"the estimator {options.estimator} needs factors by position, which were not "
            "collected beside these gradients; collect them again for it"
        )
    groups = group(gradients.record, options.block)
    own = (steps or NO_STEPS).of_kind("solve", options.part(SolveOptions).recorded())
    solutions = solve_blocks(gradients, groups, options, own)
    seconds = gradients.record.seconds + time.perf_counter() - began
    record = gradients.record.model_copy(update={"seconds": seconds})
    return assembled(record, options, groups, solutions, gradients.losses, gradients.order)


def assembled(
    record: GradientsRecord,
    options: SolveOptions,
    groups: Groups,
    solutions: Mapping[str, Sequence[Solution]],
    losses: torch.Tensor,
    order: torch.Tensor,
) -> LayerScores:
    """The scores from the solutions of all blocks, in the order of the samples.

    Args:
        record: of the gradients; its seconds are those of all the work.
        options: that were solved by.
        groups: the blocks, and which matrices are in each.
        solutions: of each block, one a damping, batch by batch.
        losses, order: (n,) losses batch by batch, and which sample each is of.
    """
    first = {name: at_each[0] for name, at_each in solutions.items()}
    chosen = ESTIMATORS.find(options.estimator)
    _note_unconverged(first, options)
    sizes = [out * into for out, into in (matrix.shape for matrix in record.matrices)]
    shares = {
        name: 1.0 if options.normalise == "none" else 1 / sum(sizes[row] for row in rows)
        for name, rows in groups.items()
    }
    samples = len(order)

    def by_layer(number: int) -> NDArray[np.float64]:
        total = torch.zeros(record.model.layers, samples, dtype=torch.float64)
        for name, rows in groups.items():
            layer = record.projections[record.matrices[rows[0]].projection].layer
            total[layer, order] += shares[name] * solutions[name][number].influence.cpu()
        return total.numpy()

    by_projection = torch.zeros(len(record.projections), samples, dtype=torch.float64)
    for name, rows in groups.items():
        for row, part in zip(rows, first[name].by_part.cpu(), strict=True):
            by_projection[record.matrices[row].projection, order] += shares[name] * part
    train_losses = torch.empty_like(losses)
    train_losses[order] = losses
    ruled = chosen.damped and options.damping_value is None
    return LayerScores(
        influence=by_layer(0),
        projection_influence=by_projection.numpy(),
        train_losses=train_losses.numpy(),
        projections=tuple(record.projections),
        model=record.model,
        record=ScoringRecord(
            estimator=options.estimator,
            subspace=record.subspace,
            subspace_options=record.subspace_options,
            block=options.block,
            normalise=options.normalise,
            damping=options.damping if ruled else None,
            damping_value=options.damping_value if chosen.damped else None,
            tolerance=options.tolerance if chosen.iterative else None,
            max_iterations=options.max_iterations if chosen.iterative else None,
            sign="helpful_positive",
            seed=options.seed,
            max_length=record.max_length,
            task=record.task,
            train_samples=record.train_samples,
            validation_samples=record.validation_samples,
            dropped_train=record.dropped_train,
            dropped_validation=record.dropped_validation,
            silent_blocks=[name for name, solution in first.items() if solution.silent],
            blocks={
                name: BlockRecord.model_validate(solution, from_attributes=True)
                for name, solution in first.items()
            },
            validation_loss=record.validation_loss,
            seconds=round(record.seconds, 3),
            setting=record.setting,
        ),
        damping_sweep=swept(options, solutions, by_layer) if options.damping_sweep else None,
    )


def group(record: GradientsRecord, block: BlockGranularity) -> dict[str, list[int]]:
    """The blocks that the matrices make."""
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
    gradients: Gradients, groups: Groups, options: SolveOptions, steps: Steps
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
    estimator, record = ESTIMATORS.find(options.estimator), gradients.record

    def one(_number: int, name: str) -> Step:
        rows, means = groups[name], gradients.means
        parts = tuple(
            Part(m.key, means[row], m.shape, gradients.factors.get(m.key))
            for row, m in ((row, record.matrices[row]) for row in rows)
        )
        block = Block(name, parts, tuple(gradients.store.of(row) for row in rows))
        found: Step = {}
        try:
            solutions = estimator.solutions(block, options.dampings, options)
        except NumericalError as error:
            error.keeps_steps = True  # the gradients are sound, and another damping may do
            raise
        for number, solution in enumerate(solutions):
            own, whole = solution.by_part.shape, solution.influence.shape
            if own != (len(rows), block.samples) or whole != own[1:]:
                raise InputError(
                    f"the estimator {options.estimator} gives block {name} influence of shape "
                    f"{tuple(whole)} and {tuple(own)} by part; expected {(block.samples,)} and "
                    f"{(len(rows), block.samples)}"
                )
            found |= {f"{number}/{key}": tensor for key, tensor in solution.tensors().items()}
        return found

    solutions = {}
    with progress("influence", len(groups)) as advance:
        for name, kept, _ in finished(list(groups), "influence", steps, one, worth=WORTH):
            found: list[Step] = [{} for _ in options.dampings]
            for key, tensor in kept.items():
                number, _, attribute = key.partition("/")
                found[int(number)][attribute] = tensor
            solutions[name] = list(map(Solution.of_tensors, found))
            advance()
    return solutions


def workspace(
    groups: Groups, matrices: Sequence[Matrix], samples: int, options: SolveOptions
) -> int:
    """Bytes that the estimator takes beside the gradients: in the block where it takes most, and
    for what it keeps of all.
    """
    estimator = ESTIMATORS.find(options.estimator)
    if estimator.workspace is None:
        return 0
    needed = estimator.workspace
    # Factors by position are gathered for all blocks at once, in float64.
    factors = sum(8 * (m.shape[0] ** 2 + m.shape[1] ** 2) for m in matrices)
    return (factors if estimator.by_position else 0) + max(
        needed([matrices[row].shape for row in rows], samples) for rows in groups.values()
    )


def _note_unconverged(solutions: Mapping[str, Solution], options: SolveOptions) -> None:
    """Say which blocks an iterative estimator has not solved."""
    residuals = {name: s.residual or 0.0 for name, s in solutions.items() if not s.converged}
    if residuals:
        worst = max(residuals, key=residuals.__getitem__)
        steps = solutions[worst].iterations
        remedy = f" after {steps} iterations: raise them, or the damping"
        note(
            f"{options.estimator} did not reach the residual {options.tolerance:g} in "
            f"{len(residuals)} of {len(solutions)} blocks; the largest is {residuals[worst]:.2g}, "
            f"in {worst}{remedy if steps else ': raise the damping'}"
        )
