"""From a model and examples to what can be run: batches, trainable matrices, hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from layerif.artifacts import ProjectionInfo
from layerif.artifacts.gradients import GradientsRecord, MatrixRecord
from layerif.core.checkpoint import Steps
from layerif.core.progress import progress
from layerif.data.base import Example
from layerif.data.chunks import usable_length
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError
from layerif.estimates import Pass, largest, note_memory
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.options import CollectOptions
from layerif.influence.passes import Runner, Samples
from layerif.influence.subspaces.base import Matrix
from layerif.influence.subspaces.lora import FreshLora
from layerif.influence.subspaces.registry import subspace_kind
from layerif.influence.warmup import warmed_up
from layerif.model.gradient_checkpointing import checkpointed
from layerif.model.layers import DecoderLayers, find_decoder_layers, unwrapped
from layerif.model.opening import Tokenizer, describe, input_device, setting


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model whose gradients can be taken, and the samples to take them on.

    Attributes:
        model, layers: the transformers model, and its decoder layers.
        matrices: whose gradients are taken.
        formed: whether those of a batch may be formed; full weights' may not.
        train, validation: the samples in batches.
        options: that all of this follows.
        record: of the gradients, but for what running shows.
    """

    model: Any
    layers: DecoderLayers
    matrices: list[Matrix]
    formed: bool
    train: Samples
    validation: Samples
    options: CollectOptions
    record: GradientsRecord

    @property
    def dtype(self) -> torch.dtype:
        """Of the gradients: float32 at least."""
        return getattr(torch, self.record.dtype)  # type: ignore[no-any-return]

    def steps(self, steps: Steps, *kind: Any) -> Steps:
        """Steps of work of one kind on these very batches and matrices."""
        return steps.of_kind(
            *kind,
            [[matrix.key, *matrix.shape] for matrix in self.matrices],
            [[len(part.items), part.starts] for part in (self.train, self.validation)],
            str(self.dtype),
        )

    @contextmanager
    def running(self, rounds: int) -> Iterator[Runner]:
        """Hooks in the model, and a bar for `rounds` passes over the training samples."""
        total = self.validation.tokens + rounds * self.train.tokens
        recomputed = self.options.gradient_checkpointing or getattr(
            self.model, "is_activation_checkpointing", False
        )
        if not recomputed:
            how: Pass = "backward" if self.formed else "inputs"
            batches = self.train.batches + self.validation.batches
            note_memory(self.model, "scoring", how, largest(batches))
        with (
            frozen(self.model),
            checkpointed(self.layers.modules) if recomputed else nullcontext(),
            PerSampleGradients(self.model, self.layers.projections, self.matrices) as per_sample,
            progress("per-sample gradients", total) as advance,
        ):
            device, side = input_device(self.model), self.options.padding_side
            yield Runner(per_sample, device, side, total, advance)


@contextmanager
def prepared(
    model: Any,
    tokenizer: Tokenizer,
    train: Sequence[Example],
    validation: Sequence[Example],
    options: CollectOptions,
    *,
    task: dict[str, Any] | None,
    steps: Steps,
) -> Iterator[Prepared]:
    """Encode the samples, and put the subspace in place for as long as the block lasts.

    Raises:
        InputError: no sample is left to use, or the model is not what the subspace needs.
        NumericalError: a loss of the warm-up is not finite.
    """
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    length = usable_length(model, options.max_length)
    kind = subspace_kind(options.subspace)
    subspace = kind.open(model, options)
    if options.warmup_steps and not kind.of_adapter:
        raise InputError("a warm-up fine-tunes the adapter of the subspace adapter; choose that")
    train_items, dropped_train = encode_samples(tokenizer, train, length, "training")
    own_items, dropped_validation = encode_samples(tokenizer, validation, length, "validation")
    warm: Any = nullcontext(subspace)
    if options.warmup_steps:
        lora = FreshLora(options.rank, options.alpha, options.seed)
        warm = warmed_up(model, layers, train_items, lora, options, kept=steps)
    with warm as compared:
        matrices = compared.matrices(layers.projections)
        yield Prepared(
            model,
            layers,
            matrices,
            kind.formed,
            Samples.of(train_items, options.batch_tokens, model),
            Samples.of(own_items, options.batch_tokens, model),
            options,
            GradientsRecord(
                model=describe(model),
                setting=setting(model),
                projections=[
                    ProjectionInfo(layer=p.layer, name=p.name, numel=p.numel)
                    for p in layers.projections
                ],
                matrices=[
                    MatrixRecord(key=m.key, projection=m.projection, shape=m.shape)
                    for m in matrices
                ],
                dtype=str(torch.promote_types(dtype_of(model), torch.float32)).partition(".")[2],
                subspace=compared.name,
                subspace_options=compared.record,
                seed=options.seed,
                max_length=length,
                task=task,
                train_samples=len(train_items),
                validation_samples=len(own_items),
                dropped_train=dropped_train,
                dropped_validation=dropped_validation,
            ),
        )


def dtype_of(model: Any) -> torch.dtype:
    """The precision that the model computes in; quantised weights are integers."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
