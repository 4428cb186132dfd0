"""Forward and backward passes over the samples, in batches that are fixed beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch

from layerif.core import processes
from layerif.core.checkpoint import Steps
from layerif.core.choices import PaddingSide
from layerif.core.progress import Advance, note
from layerif.data.batching import Batch, Encoded, collate, pack
from layerif.influence.gradients import PerSampleGradients

T = TypeVar("T")
Step = dict[str, torch.Tensor]


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


def finished(
    work: Sequence[T],
    kind: str,
    steps: Steps,
    do: Callable[[int, T], Step],
    is_whole: Callable[[int, Step], bool] = lambda _number, _step: True,
) -> Iterator[tuple[T, Step, bool]]:
    """What each piece of work leaves, in order; pieces with a step are not done again.

    Of several processes each does its share of those that are to do, and reads the steps of all.
    What the pieces leave does not depend on who did them, so neither does the result.

    Args:
        work: the pieces, the same in every process.
        kind: of the pieces, for the names of their steps.
        steps: where they are kept; with several processes, in a folder that all of them see.
        do: does one piece, and returns what its step keeps.
        is_whole: whether what a piece has left beside its step is still there as it was.

    Yields:
        The piece, what it left, and whether that was read and not done here.
    """
    names = [f"{kind}-{number:05d}" for number in range(len(work))]

    def kept(number: int) -> Step | None:
        found = steps.load(names[number])
        return found if found is not None and is_whole(number, found) else None

    done = set()
    together = processes.count() > 1
    if together:
        missing = processes.agreed(lambda: [n for n in range(len(work)) if kept(n) is None])
        for number in processes.share(missing):
            steps.save(names[number], do(number, work[number]))
            done.add(number)
        processes.barrier()
    for number, name in enumerate(names):
        found = steps.awaited(name) if together else kept(number)
        if found is None:
            found = do(number, work[number])
            steps.save(name, found)
            done.add(number)
        yield work[number], found, number not in done
