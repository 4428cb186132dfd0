"""Rows to the optimiser's batches: all of a run's are fixed before its first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import torch

from layerif.core import processes
from layerif.data.batching import Encoded, pack
from layerif.finetuning.options import FinetuneOptions


@dataclass(frozen=True, eq=False)
class StepBatch:
    """What one process runs of one step of the optimiser.

    Attributes:
        parts: this process's rows, in groups that are run at once; at least one.
        rows, tokens: of the whole step, over all processes; tokens are those scored.
        spare: there are fewer rows than processes, and this one, which has none of its own, runs
            one for nothing, since all have to run together.
    """

    parts: list[list[Encoded]]
    rows: int
    tokens: int
    spare: bool = False


class Batches(torch.utils.data.Dataset[StepBatch]):
    """The batches of every step of a run, in order; each process sees its share of each.

    Every epoch goes through all rows in an order of its own; its last batch may be smaller.
    """

    def __init__(self, items: Sequence[Encoded], options: FinetuneOptions, model: Any) -> None:
        self._items, self._options, self._model = items, options, model
        self.steps_of_epoch = math.ceil(len(items) / options.batch_size)
        asked = options.max_steps or math.ceil(options.epochs * self.steps_of_epoch)
        self._rows: list[list[int]] = []
        generator = torch.Generator().manual_seed(options.seed)
        while len(self._rows) < asked:
            order: list[int] = torch.randperm(len(items), generator=generator).tolist()
            size = options.batch_size
            self._rows += [order[i : i + size] for i in range(0, len(order), size)]
        del self._rows[asked:]

    def until(self, steps: int) -> Self:
        """The batches of the first steps alone."""
        first = copy(self)
        first._rows = self._rows[:steps]
        return first

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, step: int) -> StepBatch:
        rows = [self._items[row] for row in self._rows[step]]
        own = processes.share(rows)
        parts = pack(own or rows[:1], self._options.batch_tokens, self._model)
        return StepBatch(parts, len(rows), sum(item.scored for item in rows), spare=not own)
