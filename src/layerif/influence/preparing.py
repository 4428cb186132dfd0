"""From a model and examples to what can be run: batches, trainable matrices, hooks.

Batches are fixed before the first is run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from layerif.artifacts import ProjectionInfo
from layerif.artifacts.gradients import GradientsRecord, MatrixRecord
from layerif.core import processes
from layerif.core.checkpoint import Steps
from layerif.core.choices import PaddingSide
from layerif.core.progress import Advance, note, progress
from layerif.data.batching import Batch, Encoded, collate, pack
from layerif.data.chunks import usable_length
from layerif.data.rows import Rows, encode_rows
from layerif.errors import InputError
from layerif.estimates import Pass, largest, note_memory
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.options import CollectOptions
from layerif.influence.subspaces.base import Matrix
from layerif.influence.subspaces.lora import FreshLora
from layerif.influence.subspaces.registry import subspace_kind
from layerif.influence.warmup import warmed_up
from layerif.model.layers import DecoderLayers, find_decoder_layers, unwrapped
from layerif.model.modes import checkpointed
from layerif.model.opening import Tokenizer, describe, input_device, setting


@dataclass
class Samples:
    """Samples as batches; which batch a sample is in depends on all of them and on nothing else.

    Attributes:
        items: the samples, in the order of results.
        batches: the same, packed by length.
    """

    items: Sequence[Encoded]
    batches: list[list[Encoded]]

    @classmethod
    def of(cls, items: Sequence[Encoded], batch_tokens: int, model: Any = None) -> Samples:
        """Samples packed into batches of at most `batch_tokens`, for this model."""
        return cls(items, pack(items, batch_tokens, model))

    @property
    def order(self) -> torch.Tensor:
        """(n,) the samples' places in `items`, batch by batch."""
        place = {item.index: row for row, item in enumerate(self.items)}
        return torch.tensor([place[item.index] for batch in self.batches for item in batch])

    @property
    def starts(self) -> list[int]:
        """For each batch how many samples come before it, batch by batch."""
        return list(accumulate((len(batch) for batch in self.batches[:-1]), initial=0))

    @property
    def tokens(self) -> int:
        return sum(len(item.input_ids) for item in self.items)


@dataclass
class Runner:
    """Runs batches forward and back, and says after the first how long all of them will take.

    Attributes:
        per_sample: the hooks.
        device: of the model's inputs.
        padding_side: of batches.
        total_tokens: of all passes together.
        advance: the progress bar's.
    """

    per_sample: PerSampleGradients
    device: torch.device
    padding_side: PaddingSide
    total_tokens: int
    advance: Advance
    _timed: bool = False

    def gradients(
        self, items: Sequence[Encoded], kind: str
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(B,) losses of a batch's samples, and for each matrix (B, d) their gradients."""
        losses, gradients = self._run(items, lambda batch: self.per_sample(batch, kind))
        return losses, [gradient.flatten(1) for gradient in gradients]

    def factors(self, items: Sequence[Encoded], kind: str, take: Any) -> torch.Tensor:
        """(B,) losses, with the gradients handed to `take` as they come."""
        losses: torch.Tensor = self._run(items, lambda b: self.per_sample.visit(b, take, kind))
        return losses

    def skip(self, items: Sequence[Encoded]) -> None:
        """A batch that was run before."""
        self.advance(sum(len(item.input_ids) for item in items))

    def _run(self, items: Sequence[Encoded], run: Callable[[Batch], Any]) -> Any:
        began = time.perf_counter()
        batch = collate(items, device=self.device, padding_side=self.padding_side)
        found = run(batch)
        if not self._timed:
            self._timed = True
            seconds = (time.perf_counter() - began) / batch.tokens * self.total_tokens
            seconds /= processes.count()
            note(f"{self.total_tokens:,} tokens, forward and backward: about {seconds:.0f} s")
        self.skip(items)
        return found


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
        return getattr(torch, self.record.dtype)

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
    train: Rows,
    validation: Rows,
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
    train_items, dropped_train = encode_rows(tokenizer, train, length, "training")
    own_items, dropped_validation = encode_rows(tokenizer, validation, length, "validation")
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
