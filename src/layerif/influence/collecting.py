"""Gradients collected once and kept, for estimators that read them as often as they like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from layerif.core.checkpoint import Steps
from layerif.data.batching import Encoded
from layerif.influence.blocks import Groups, solve
from layerif.influence.estimators import EstimatorOptions, Factors
from layerif.influence.passes import Measured, Runner, Samples, Step, finished
from layerif.influence.store import GradientStore
from layerif.influence.subspaces import Matrix


def collect(
    runner: Runner,
    matrices: Sequence[Matrix],
    groups: Groups,
    train: Samples,
    validation: Samples,
    options: EstimatorOptions,
    *,
    store: GradientStore,
    factors: Mapping[str, Sequence[Factors]],
    steps: Steps,
) -> Measured:
    """Run every sample forward and back once, and solve block by block.

    Args:
        runner: of the batches.
        matrices, groups: of the subspace, and the blocks they make.
        store: where the training gradients go.
        factors: of each block's matrices, for an estimator that goes by positions; else empty.
        steps: keeps what each batch leaves beside them; a batch with a step is not run again.
    """
    means, validation_loss = mean_gradients(runner, matrices, validation, "validation", steps)
    losses = torch.empty(len(train.items), dtype=torch.float64)
    starts = train.starts

    def run(number: int, items: Sequence[Encoded]) -> Step:
        found, gradients = runner.gradients(items, "training sample")
        # The gradients first: the step says that they are there, and how to tell.
        check = store.put(starts[number], gradients)
        return {"losses": found.double().cpu(), "checksum": torch.tensor(check)}

    def is_whole(number: int, kept: Step) -> bool:
        return store.checksum(starts[number], len(kept["losses"])) == int(kept["checksum"])

    batches = finished(train.batches, "training", steps, run, is_whole)
    for start, (items, kept, read) in zip(starts, batches, strict=True):
        losses[start : start + len(items)] = kept["losses"]
        if read:
            runner.skip(items)
    solutions = solve(groups, matrices, store, means, options, steps, factors)
    return Measured(solutions, losses, validation_loss)


def mean_gradients(
    runner: Runner, matrices: Sequence[Matrix], samples: Samples, kind: str, steps: Steps
) -> tuple[list[torch.Tensor], float]:
    """(d,) float64 mean gradient of the samples in each matrix, and their mean loss.

    Args:
        runner: of the batches.
        matrices: of the subspace.
        samples: each counts alike.
        kind: of the samples, for errors and the names of their steps.
        steps: keeps what each batch comes to.
    """
    sizes = [matrix.size for matrix in matrices]
    total = torch.zeros(sum(sizes), dtype=torch.float64)
    loss = 0.0

    def run(_number: int, items: Sequence[Encoded]) -> Step:
        losses, gradients = runner.gradients(items, f"{kind} sample")
        summed = [gradient.double().sum(0).cpu() for gradient in gradients]
        return {"sum": torch.cat(summed), "loss": losses.double().sum().cpu()[None]}

    for items, kept, read in finished(samples.batches, kind, steps, run):
        total += kept["sum"]
        loss += kept["loss"].item()
        if read:
            runner.skip(items)
    count = len(samples.items)
    return list((total / count).split(sizes)), loss / count
