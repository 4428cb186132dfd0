"""Gradients collected once and kept, for estimators that read them as often as they like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from layerif.checkpoint import Steps
from layerif.influence.passes import Runner, Samples, numbered
from layerif.influence.store import GradientStore
from layerif.influence.subspaces import Matrix


@dataclass
class Collected:
    """What one pass over the samples leaves behind.

    Attributes:
        means: for each matrix (d,) float64, the mean validation gradient.
        losses: (n,) float64 of the training samples, batch by batch as they are stored.
        validation_loss: mean over the validation samples.
    """

    means: list[torch.Tensor]
    losses: torch.Tensor
    validation_loss: float


def collect(
    runner: Runner,
    matrices: Sequence[Matrix],
    train: Samples,
    validation: Samples,
    store: GradientStore,
    steps: Steps,
    mine: range | None = None,
) -> Collected:
    """Run every sample forward and back once, the training gradients into the store.

    Args:
        runner: of the batches.
        store: where the training gradients go.
        steps: keeps what each batch leaves beside them; a batch with a step is not run again.
    """
    means = validation_means(runner, matrices, validation, steps)
    losses = torch.empty(len(train.items), dtype=torch.float64)
    for number, items, _, start in numbered(train):
        step = f"training-{number:05d}"
        kept = steps.load(step)
        if kept is None:
            found, gradients = runner.gradients(items, "training sample")
            # The gradients first: the step says that they are there.
            store.put(start, gradients)
            kept = {"losses": found.double().cpu()}
            steps.save(step, kept)
        else:
            runner.skip(items)
        losses[start : start + len(items)] = kept["losses"]
    return Collected(means.gradients, losses, means.loss)


@dataclass
class ValidationMeans:
    """Mean gradient (d,) float64 of the validation samples in each matrix, and their mean loss."""

    gradients: list[torch.Tensor]
    loss: float


def validation_means(
    runner: Runner, matrices: Sequence[Matrix], validation: Samples, steps: Steps
) -> ValidationMeans:
    """One forward and one backward pass over the validation samples."""
    sizes = [matrix.size for matrix in matrices]
    total = torch.zeros(sum(sizes), dtype=torch.float64)
    loss = 0.0
    for number, items, _, _ in numbered(validation):
        step = f"validation-{number:05d}"
        kept = steps.load(step)
        if kept is None:
            losses, gradients = runner.gradients(items, "validation sample")
            summed = [gradient.double().sum(0).cpu() for gradient in gradients]
            kept = {"sum": torch.cat(summed), "loss": losses.double().sum().cpu()[None]}
            steps.save(step, kept)
        else:
            runner.skip(items)
        total += kept["sum"]
        loss += kept["loss"].item()
    count = len(validation.items)
    return ValidationMeans(list((total / count).split(sizes)), loss / count)
