"""Gradients are collected once, for estimators that read them as often as they like."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.data.batching import Encoded
from layerif.data.rows import Rows
from layerif.errors import InputError
from layerif.influence.keeping import Step, finished
from layerif.influence.memory import choose
from layerif.influence.options import CollectOptions
from layerif.influence.preparing import Prepared, Runner, Samples, prepared
from layerif.influence.store import DiskStore, Gradients, MemoryStore
from layerif.influence.streaming import factors_by_position
from layerif.influence.subspaces.base import Matrix
from layerif.model.opening import Tokenizer


@takes(CollectOptions)
def collect(
    model: Any,
    tokenizer: Tokenizer,
    train: Rows,
    validation: Rows,
    *,
    options: CollectOptions,
    factors: bool = False,
    task: dict[str, Any] | None = None,
    steps: Steps | None = None,
) -> Gradients:
    """The gradients of every training sample, for `solve` to take influence from.

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer.
        train: samples whose influence is to be measured.
        validation: samples whose mean loss it is measured on.
        options: whose gradients, and where they are kept: in memory, or on disk beside `steps`.
        factors: gather what the estimator ekfac needs too, by one more pass.
        task: where the samples come from, for the record.
        steps: keeps finished batches, so that an interrupted run can go on; None keeps nothing.

    Raises:
        InputError: no sample is left to use, or the gradients have room nowhere.
        NumericalError: a loss or gradient is not finite; names the sample.
    """
    kept = steps or NO_STEPS
    with prepared(model, tokenizer, train, validation, options, task=task, steps=kept) as work:
        place = choose(work, kept.folder)
        if place == "passes":
            raise InputError(
                "there is room for these gradients neither in memory nor on disk, and passes keep "
                "none; use fewer samples or a smaller subspace"
            )
        return collected(work, place == "disk", factors, kept)


def collected(work: Prepared, on_disk: bool, factors: bool, steps: Steps) -> Gradients:
    """Run every sample forward and back once.

    Args:
        work: samples, matrices and the model.
        on_disk: keep the gradients in the folder of `steps`, and not in memory.
        factors: gather what the estimator ekfac needs too, by one more pass.
        steps: keeps what each batch leaves beside them; a batch with a step is not run again.
    """
    began = time.perf_counter()
    kept = (work.matrices, len(work.train.items), work.dtype)
    folder = steps.folder if on_disk else None
    store = MemoryStore(*kept) if folder is None else DiskStore(folder, *kept)
    # Without the gradients, which stay in memory, what a batch left is of no use.
    steps = work.steps(steps, "disk") if on_disk else NO_STEPS
    with work.running(1 + factors) as runner:
        of_positions = factors_by_position(runner, work, steps) if factors else {}
        means, validation_loss = mean_gradients(
            runner, work.matrices, work.validation, "validation", steps
        )
        losses = _training_gradients(runner, work.train, store, steps)
    found = {"validation_loss": validation_loss, "seconds": time.perf_counter() - began}
    record = work.record.model_copy(update=found)
    return Gradients(record, store, means, losses, work.train.order, of_positions)


def _training_gradients(
    runner: Runner, train: Samples, store: MemoryStore | DiskStore, steps: Steps
) -> torch.Tensor:
    """Bring the gradients of every training sample into the store; (n,) their losses."""
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
    return losses


def mean_gradients(
    runner: Runner, matrices: Sequence[Matrix], samples: Samples, kind: str, steps: Steps
) -> tuple[list[torch.Tensor], float]:
    """(d,) float64 mean gradient of the samples in each matrix, and their mean loss.

    Args:
        runner: of the batches.
        matrices: of the subspace.
        samples: each counts alike.
        kind: of the samples, for errors and the names of their steps.
        steps: keeps the sums of each batch.
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
