"""From a model and examples to LayerScores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerif.artifacts import LayerScores, ProjectionInfo, ScoringRecord
from layerif.core import processes
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.choices import (
    BlockGranularity,
    Keep,
    Normalise,
    PaddingSide,
    SubspaceName,
    check_choice,
)
from layerif.core.progress import progress
from layerif.data.base import Example
from layerif.data.batching import Encoded
from layerif.data.chunks import usable_length
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError
from layerif.estimates import Pass, largest, note_memory
from layerif.influence import blocks as blockwise
from layerif.influence.blocks import Groups
from layerif.influence.collecting import collect
from layerif.influence.estimators import EstimatorOptions, checked_options, find
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.memory import choose
from layerif.influence.passes import Measured, Runner, Samples
from layerif.influence.store import FILE, DiskStore, GradientStore, MemoryStore
from layerif.influence.streaming import factors_by_position, passes_needed, stream
from layerif.influence.subspaces import FreshLora, FullWeights, Matrix, Subspace, subspace_of
from layerif.influence.sweeping import swept
from layerif.influence.warmup import warmed_up
from layerif.model import (
    DecoderLayers,
    Tokenizer,
    checkpointed,
    describe,
    find_decoder_layers,
    input_device,
    setting,
    unwrapped,
)


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
    damping_sweep: Sequence[float] = (),
    block: BlockGranularity = "matrix",
    normalise: Normalise = "none",
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    seed: int = 0,
    max_length: int = 512,
    batch_tokens: int = 1024,
    subspace: SubspaceName | Subspace = "fresh_lora",
    size: int = 16,
    adapter: str = "default",
    warmup_steps: int = 0,
    keep: Keep = "auto",
    memory: float | None = None,
    gradient_checkpointing: bool = False,
    padding_side: PaddingSide = "right",
    task: dict[str, Any] | None = None,
    steps: Steps | None = None,
) -> LayerScores:
    """How each training sample moves the validation loss through each decoder layer.

    An estimator, DataInf unless another is named, on a fresh LoRA subspace: one forward and one
    backward pass over each sample, in batches, for all layers at once. The loss of a sample is the
    mean cross-entropy of its completion tokens. The result does not depend on batch size, order of
    samples or padding side.

    Of several processes (`torchrun`) each calls it with the same, and has the whole result: each
    runs its share of the batches, and they share what comes of them through the folder of `steps`,
    or add it up where gradients are not kept.

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
        damping_sweep: further factors of the rule; the layer scores at each, and how far the
            ranking of the layers depends on it, come from the same gradients.
        block: what one inverse Hessian covers: each trainable matrix by itself, or all those of a
            projection or a layer together.
        normalise: `per_parameter` divides the influence through a block by its number of parameters
            d, with which DataInf's grows; `none` is LayerIF's way.
        subspace: whose gradients are compared: `fresh_lora`, `two_sided` (random projections of
            `size`), `full` (the weights), `adapter` (the active LoRA of a PEFT model), or one of
            your own.
        size: of the two-sided projections.
        adapter: name of the LoRA that the subspace `adapter` takes.
        warmup_steps: in its place a fresh LoRA of `rank` and `alpha` on every projection, which is
            fine-tuned on the training samples for so many steps, and taken out afterwards.
        keep: where training gradients are kept: in `memory`, on `disk` beside the steps, or nowhere
            (`passes`: computed again, memory independent of the samples); `auto` chooses.
        memory: GB that gradients and the estimator may take; None for nine tenths of what is free.
        gradient_checkpointing: run each layer again in the backward pass and keep no activations of
            it: less memory, a third more time. So too where the model has it switched on.
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
        sweep=damping_sweep,
    )
    chosen = find(estimator)
    check_choice(normalise, Normalise, "normalisation")
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    max_length = usable_length(model, max_length)
    compared = subspace_of(
        subspace, model, rank=rank, alpha=alpha, size=size, seed=seed, adapter=adapter
    )
    if warmup_steps and subspace != "adapter":
        raise InputError("a warm-up fine-tunes the adapter of the subspace adapter; choose that")
    train_items, dropped_train = encode_samples(tokenizer, train, max_length, "training")
    validation_items, dropped_validation = encode_samples(
        tokenizer, validation, max_length, "validation"
    )
    with ExitStack() as stack:
        if warmup_steps:
            warm = warmed_up(
                model,
                layers,
                train_items,
                FreshLora(rank, alpha, seed),
                steps=warmup_steps,
                batch_tokens=batch_tokens,
                padding_side=padding_side,
                kept=steps or NO_STEPS,
            )
            compared = stack.enter_context(warm)
        matrices = compared.matrices(layers.projections)
        groups = blockwise.group(matrices, layers.projections, block)
        subspace_options = compared.record
        found, order = _measured(
            model,
            layers,
            compared,
            matrices,
            groups,
            (train_items, validation_items),
            options,
            batch_tokens=batch_tokens,
            padding_side=padding_side,
            keep=keep,
            memory=memory,
            recomputed=gradient_checkpointing
            or getattr(model, "is_activation_checkpointing", False),
            steps=steps or NO_STEPS,
        )
    solutions = {name: at_each[0] for name, at_each in found.solutions.items()}
    blockwise.note_unconverged(solutions, options)

    shares = {
        name: 1.0 if normalise == "none" else 1 / sum(matrices[row].size for row in rows)
        for name, rows in groups.items()
    }

    def by_layer(number: int) -> NDArray[np.float64]:
        total = torch.zeros(len(layers), len(train_items), dtype=torch.float64)
        for name, rows in groups.items():
            layer = layers.projections[matrices[rows[0]].projection].layer
            influence = found.solutions[name][number].influence.cpu()
            total[layer, order] += shares[name] * influence
        return total.numpy()

    # Solutions are batch by batch; results are in the order of the samples.
    by_projection = torch.zeros(len(layers.projections), len(train_items), dtype=torch.float64)
    for name, rows in groups.items():
        for row, part in zip(rows, solutions[name].by_part.cpu(), strict=True):
            by_projection[matrices[row].projection, order] += shares[name] * part
    losses = torch.empty_like(found.losses)
    losses[order] = found.losses
    return LayerScores(
        influence=by_layer(0),
        projection_influence=by_projection.numpy(),
        train_losses=losses.numpy(),
        projections=tuple(
            ProjectionInfo(layer=p.layer, name=p.name, numel=p.numel) for p in layers.projections
        ),
        model=describe(model),
        record=ScoringRecord(
            estimator=estimator,
            subspace=compared.name,
            subspace_options=subspace_options,
            block=block,
            normalise=normalise,
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
        damping_sweep=swept(options, found.solutions, by_layer) if damping_sweep else None,
    )


def _measured(
    model: Any,
    layers: DecoderLayers,
    subspace: Subspace,
    matrices: Sequence[Matrix],
    groups: Groups,
    samples: tuple[Sequence[Encoded], Sequence[Encoded]],
    options: EstimatorOptions,
    *,
    batch_tokens: int,
    padding_side: PaddingSide,
    keep: Keep,
    memory: float | None,
    recomputed: bool,
    steps: Steps,
) -> tuple[Measured, torch.Tensor]:
    """The solution of every block, and which sample each of its numbers is of."""
    train, validation = (Samples.of(items, batch_tokens, model) for items in samples)
    dtype = torch.promote_types(_dtype_of(model), torch.float32)
    formed = not isinstance(subspace, FullWeights)
    # Once for all processes, since each sees other memory free.
    chosen = processes.agreed(
        lambda: choose(
            keep,
            matrices,
            len(train.items),
            dtype,
            options=options,
            workspace=blockwise.workspace(groups, matrices, len(train.items), options),
            folder=steps.folder,
            memory=None if memory is None else memory * 1e9,
            formed=formed,
        )
    )
    # What depends on the way of keeping, or on what a caller's own fingerprint may leave out.
    steps = steps.of_kind(
        chosen,
        asdict(options),
        {
            name: [[matrices[row].key, *matrices[row].shape] for row in rows]
            for name, rows in groups.items()
        },
        [[len(part.items), part.starts] for part in (train, validation)],
        str(dtype),
    )
    if chosen != "disk" and steps.folder is not None and processes.is_first():
        (steps.folder / FILE).unlink(missing_ok=True)  # of a run that kept them, and takes the room
    by_position = find(options.name).by_position
    rounds = passes_needed(options) if chosen == "passes" else 1 + by_position
    total = validation.tokens + rounds * train.tokens
    if not recomputed:
        batches = train.batches + validation.batches
        how: Pass = "backward" if formed else "inputs"
        note_memory(model, "scoring", how, largest(batches))
    with (
        frozen(model),
        checkpointed(layers.modules) if recomputed else nullcontext(),
        PerSampleGradients(model, layers.projections, matrices) as per_sample,
        progress("per-sample gradients", total) as advance,
    ):
        device = input_device(model)
        runner = Runner(per_sample, device, padding_side, total, advance)
        if chosen == "passes":
            found = stream(
                runner, matrices, groups, train, validation, options, formed=formed, steps=steps
            )
            return found, train.order
        store: GradientStore
        if chosen == "disk" and steps.folder is not None:
            store = DiskStore(steps.folder, matrices, len(train.items), dtype)
        else:
            store = MemoryStore(matrices, len(train.items), dtype)
        # Without the gradients that stay in memory, what a batch left is of no use.
        kept = steps if chosen == "disk" else NO_STEPS
        factors = {}
        if by_position:
            factors = factors_by_position(runner, matrices, groups, train, kept)
        found = collect(
            runner,
            matrices,
            groups,
            train,
            validation,
            options,
            store=store,
            factors=factors,
            steps=kept,
        )
    return found, train.order


def _dtype_of(model: Any) -> torch.dtype:
    """The precision that the model computes in; quantised weights are integers."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating)
