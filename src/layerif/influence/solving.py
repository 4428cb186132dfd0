"""From gradients to LayerScores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from layerif.artifacts import LayerScores, ScoringRecord
from layerif.artifacts.gradients import GradientsRecord
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.errors import InputError
from layerif.influence import blocks
from layerif.influence.collecting import Gradients
from layerif.influence.estimators.base import Solution
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.influence.options import SolveOptions
from layerif.influence.sweeping import swept


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
    solver = options.solver()
    if ESTIMATORS.find(options.estimator).by_position and not gradients.factors:
        raise InputError(
            f"the estimator {options.estimator} needs factors by position, which were not "
            "collected beside these gradients; collect them again for it"
        )
    groups = blocks.group(gradients.record, options.block)
    own = (steps or NO_STEPS).of_kind("solve", options.recorded())
    solutions = blocks.solve_blocks(gradients, groups, solver, own)
    seconds = gradients.record.seconds + time.perf_counter() - began
    record = gradients.record.model_copy(update={"seconds": seconds})
    return assembled(record, options, groups, solutions, gradients.losses, gradients.order)


def assembled(
    record: GradientsRecord,
    options: SolveOptions,
    groups: Mapping[str, Sequence[int]],
    solutions: Mapping[str, Sequence[Solution]],
    losses: torch.Tensor,
    order: torch.Tensor,
) -> LayerScores:
    """The scores that the solutions of all blocks come to, in the order of the samples.

    Args:
        record: of the gradients; its seconds are those of all the work.
        options: that were solved by.
        groups: the blocks, and which matrices are in each.
        solutions: of each block, one a damping, batch by batch.
        losses, order: (n,) losses batch by batch, and which sample each is of.
    """
    first = {name: at_each[0] for name, at_each in solutions.items()}
    solver, chosen = options.solver(), ESTIMATORS.find(options.estimator)
    blocks.note_unconverged(first, solver)
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
            blocks={name: blocks.record(solution) for name, solution in first.items()},
            validation_loss=record.validation_loss,
            seconds=round(record.seconds, 3),
            setting=record.setting,
        ),
        damping_sweep=swept(solver, solutions, by_layer) if options.damping_sweep else None,
    )
