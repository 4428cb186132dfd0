"""From a model and examples to LayerScores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from layerif.artifacts import LayerScores, ProjectionInfo, ScoringRecord
from layerif.batching import Encoded, collate, encode, pack
from layerif.checkpoint import NoSteps, Steps
from layerif.choices import BlockGranularity, PaddingSide
from layerif.chunks import usable_length
from layerif.errors import InputError
from layerif.influence import blocks as blockwise
from layerif.influence.estimators import checked_options, find
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.subspace import FreshLora
from layerif.model import Tokenizer, describe, find_decoder_layers, setting
from layerif.model.layers import Projection
from layerif.progress import note, progress
from layerif.tasks.base import Example


def score(
    model: Any,
    tokenizer: Tokenizer,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    rank: int = 8,
    alpha: float = 16.0,
    estimator: str = "datainf",
    damping: float = 0.1,
    damping_value: float | None = None,
    block: BlockGranularity = "matrix",
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    seed: int = 0,
    max_length: int = 512,
    batch_tokens: int = 1024,
    padding_side: PaddingSide = "right",
    task: dict[str, Any] | None = None,
    steps: Steps | None = None,
) -> LayerScores:
    """How each training sample moves the validation loss through each decoder layer.

    An estimator, DataInf unless another is named, on a fresh LoRA subspace: one forward and one
    backward pass over each sample, in batches, for all layers at once. The loss of a sample is the
    mean cross-entropy of its completion tokens. The result does not depend on batch size, order of
    samples or padding side.

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer.
        train: samples whose influence is measured.
        validation: samples whose mean loss they are measured on.
        rank, alpha: of the LoRA on every projection of the decoder layers.
        estimator: `datainf`, `grad_dot`, `cosine`, `exact`, `cg`, `lissa`, `ekfac`, or one that was
            registered.
        damping: lambda = damping * mean(|g|^2) / d in each block.
        damping_value: lambda itself in every block, in place of that rule.
        block: what one inverse Hessian covers: each trainable matrix by itself, or all those of a
            layer together.
        tolerance: relative residual at which an iterative estimator stops.
        max_iterations: where it stops at the latest; what has not converged is noted and recorded.
        seed: of the LoRA's A matrices, and of an estimator's random numbers.
        max_length: tokens kept of a sample, at most the model's positions; its prompt is cut from
            the left.
        batch_tokens: tokens of a batch, padding counted; what a backward pass has to keep of them
            is most of the memory that scoring takes.
        padding_side: which side of a batch is padded; changes nothing but rounding. The left is
            masked, which float64 models with eager attention cannot take (see `collate`).
        task: where the samples come from, for the record.
        steps: keeps finished batches, so that a run cut short can go on; None keeps nothing.

    Raises:
        InputError: no such estimator, no sample left to use, or the gradients do not fit in memory.
        NumericalError: a loss or gradient is not finite; names the sample.
    """
    began = time.perf_counter()
    options = checked_options(
        estimator,
        damping=damping,
        damping_value=damping_value,
        tolerance=tolerance,
        max_iterations=max_iterations,
        seed=seed,
    )
    chosen = find(estimator)
    layers = find_decoder_layers(model)
    max_length = usable_length(model, max_length)
    lora = FreshLora(rank, alpha, seed)
    shapes = [(projection.out_features, rank) for projection in layers.projections]
    groups = blockwise.group(layers.projections, block)
    train_items, dropped_train = check_samples(tokenizer, train, max_length, "training")
    validation_items, dropped_validation = check_samples(
        tokenizer, validation, max_length, "validation"
    )

    found = _collect(
        model,
        layers.projections,
        lora,
        train_items,
        validation_items,
        batch_tokens=batch_tokens,
        padding_side=padding_side,
        workspace=blockwise.workspace(groups, shapes, len(train_items), options),
        steps=steps or NoSteps(),
    )
    solutions = blockwise.solve(
        blockwise.blocks(groups, layers.projections, shapes, found.store, found.means),
        len(groups),
        options,
    )
    by_projection = torch.empty(len(shapes), len(train_items), dtype=torch.float64)
    by_layer = torch.zeros(len(layers), len(train_items), dtype=torch.float64)
    for name, rows in groups.items():
        by_projection[rows] = solutions[name].by_part.cpu()
        by_layer[layers.projections[rows[0]].layer] += solutions[name].influence.cpu()
    return LayerScores(
        influence=by_layer.numpy(),
        projection_influence=by_projection.numpy(),
        train_losses=found.train_losses.numpy(),
        projections=tuple(
            ProjectionInfo(layer=p.layer, name=p.name, numel=p.numel) for p in layers.projections
        ),
        model=describe(model),
        record=ScoringRecord(
            estimator=estimator,
            subspace="fresh_lora",
            rank=rank,
            alpha=alpha,
            block=block,
            damping=damping if chosen.damped and damping_value is None else None,
            damping_value=damping_value if chosen.damped else None,
            tolerance=tolerance if chosen.iterative else None,
            max_iterations=max_iterations if chosen.iterative else None,
            sign="helpful_positive",
            seed=seed,
            max_length=max_length,
            task=task,
            train_samples=len(train_items),
            validation_samples=len(validation_items),
            dropped_train=dropped_train,
            dropped_validation=dropped_validation,
            silent_blocks=[name for name, solution in solutions.items() if solution.silent],
            blocks={name: blockwise.record(solution) for name, solution in solutions.items()},
            validation_loss=found.validation_loss,
            seconds=round(time.perf_counter() - began, 3),
            setting=setting(model),
        ),
    )


def check_samples(
    tokenizer: Tokenizer, examples: Sequence[Example], max_length: int, what: str
) -> tuple[list[Encoded], list[int]]:
    """The samples as tokens, and the indices of those that do not fit.

    Raises:
        InputError: none fits.
    """
    items, dropped = encode(tokenizer, [(e.prompt, e.completion) for e in examples], max_length)
    if not items:
        raise InputError(
            f"none of the {len(examples)} {what} samples has a completion that fits into "
            f"{max_length} tokens beside one token of prompt; raise --max-length, or shorten the "
            "completions"
            if examples
            else f"there are no {what} samples; at least one is needed"
        )
    if dropped:
        note(
            f"{len(dropped)} of {len(examples)} {what} samples left out: their completion does "
            f"not fit into {max_length} tokens"
        )
    return items, dropped


@dataclass
class _Collected:
    """What the passes over the samples leave behind.

    Attributes:
        store: for each projection (samples, d), the training gradients.
        means: for each projection (d,) float64, the mean validation gradient.
        train_losses: (samples,) float64, in the order given.
        validation_loss: mean over the validation samples.
    """

    store: list[torch.Tensor]
    means: list[torch.Tensor]
    train_losses: torch.Tensor
    validation_loss: float = 0.0


def _collect(
    model: Any,
    projections: Sequence[Projection],
    lora: FreshLora,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    *,
    batch_tokens: int,
    padding_side: PaddingSide,
    workspace: int,
    steps: Steps,
) -> _Collected:
    """Run every sample forward and backward once."""
    found = _Collected(
        store=_allocate_store(model, projections, lora, len(train), workspace),
        means=[torch.zeros(lora.gradient_size(p), dtype=torch.float64) for p in projections],
        train_losses=torch.empty(len(train), dtype=torch.float64),
    )
    steps.reserve(sum(t.nbytes for t in found.store) * (len(train) + len(validation)) // len(train))
    row_of = {item.index: row for row, item in enumerate(train)}
    total = sum(len(item.input_ids) for item in (*train, *validation))
    with (
        frozen(model),
        PerSampleGradients(model, projections, lora) as per_sample,
        progress("per-sample gradients", total) as advance,
    ):
        passes = _Passes(per_sample, projections, steps, batch_tokens, padding_side, total)
        for items, losses, gradients in passes.over(validation, "validation"):
            found.validation_loss += losses.double().sum().item() / len(validation)
            for mean, gradient in zip(found.means, gradients, strict=True):
                mean.add_(gradient.double().sum(0).to(mean), alpha=1 / len(validation))
            advance(sum(len(item.input_ids) for item in items))
        for items, losses, gradients in passes.over(train, "training"):
            rows = torch.tensor([row_of[item.index] for item in items])
            found.train_losses[rows] = losses.to(found.train_losses)
            for stored, gradient in zip(found.store, gradients, strict=True):
                stored[rows] = gradient.to(stored)
            advance(sum(len(item.input_ids) for item in items))
    return found


@dataclass
class _Passes:
    """Forward and backward passes over batches of samples, those finished before taken as kept."""

    per_sample: PerSampleGradients
    projections: Sequence[Projection]
    steps: Steps
    batch_tokens: int
    padding_side: PaddingSide
    total_tokens: int
    _timed: bool = False

    def over(
        self, samples: Sequence[Encoded], kind: str
    ) -> Iterator[tuple[list[Encoded], torch.Tensor, list[torch.Tensor]]]:
        """For each batch its samples, their losses (B,) and gradients (B, d) by projection."""
        for number, items in enumerate(pack(samples, self.batch_tokens)):
            step = f"{kind}-{number:05d}"
            kept = self.steps.load(step)
            if kept is None:
                kept = self._run(items, kind)
                self.steps.save(step, kept)
            yield items, kept["losses"], [kept[p.key] for p in self.projections]

    def _run(self, items: Sequence[Encoded], kind: str) -> dict[str, torch.Tensor]:
        began = time.perf_counter()
        device = self.projections[0].weight.device
        batch = collate(items, device=device, padding_side=self.padding_side)
        losses, gradients = self.per_sample(batch, f"{kind} sample")
        if not self._timed:
            self._timed = True
            seconds = (time.perf_counter() - began) / batch.tokens * self.total_tokens
            note(f"{self.total_tokens:,} tokens, forward and backward: about {seconds:.0f} s")
        named = {
            p.key: gradient.flatten(1)
            for p, gradient in zip(self.projections, gradients, strict=True)
        }
        return {"losses": losses, **named}


def _allocate_store(
    model: Any, projections: Sequence[Projection], lora: FreshLora, samples: int, workspace: int
) -> list[torch.Tensor]:
    """One (samples, d) tensor a projection in main memory, refused beforehand if it cannot fit
    beside the bytes that the estimator will take.
    """
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    sizes = [lora.gradient_size(projection) for projection in projections]
    needed = samples * sum(sizes) * dtype.itemsize
    free = psutil.virtual_memory().available
    if workspace > 0.9 * free:
        raise InputError(
            f"the estimator takes {workspace / 1e9:.1f} GB for the matrices of one block of "
            f"{samples} training samples, and {free / 1e9:.1f} GB of memory are free; use fewer "
            "samples or a smaller --rank, or an estimator without such matrices: datainf or cg"
        )
    free -= workspace
    note(
        f"gradients of {samples} samples: {sum(sizes):,} numbers each, {needed / 1e9:.2f} GB "
        f"({free / 1e9:.1f} GB free)"
    )
    if needed > 0.9 * free:
        fitting = int(0.9 * free / (sum(sizes) * dtype.itemsize))
        raise InputError(
            f"the gradients of {samples} training samples take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free; use at most {fitting} samples, or a smaller "
            "--rank"
        )
    return [torch.empty(samples, size, dtype=dtype) for size in sizes]
