"""Forward and backward passes over the samples, in batches that are fixed beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from layerif.core import processes
from layerif.core.choices import PaddingSide
from layerif.core.progress import Advance, note
from layerif.data.batching import Batch, Encoded, collate, pack
from layerif.influence.gradients import PerSampleGradients


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
