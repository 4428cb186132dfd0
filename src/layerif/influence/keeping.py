"""What is kept of unfinished work, and shared between processes: pieces, and the state of passes.

A piece of work (a batch, a block) that is finished is a step. The state of passes over the samples
is kept now and then: the step `passes` is what the first process has; what each of the others has
gathered beside it is a step of its own. A generation, counted up whenever the first one takes in
what the others have, says which of those still belong to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from layerif.core import processes
from layerif.core.checkpoint import Steps
from layerif.influence.estimators.passes import Passes

# Seconds of work that an interruption costs at most; more where the state is so large that writing
# it so often would take more than a twentieth of the time.
INTERVAL = 60.0
WORK_TO_WRITING = 20.0
STEP = "passes"

T = TypeVar("T")
Step = dict[str, torch.Tensor]


def finished(
    work: Sequence[T],
    kind: str,
    steps: Steps,
    do: Callable[[int, T], Step],
    is_whole: Callable[[int, Step], bool] = lambda _number, _step: True,
    worth: float = 0.0,
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
        worth: seconds; one process alone keeps no piece that took less.

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
            began = time.perf_counter()
            found = do(number, work[number])
            if time.perf_counter() - began >= worth:
                steps.save(name, found)
            done.add(number)
        yield work[number], found, number not in done


class Keeping:
    """Keeps the passes of all blocks, and the losses that come with the first of them.

    Args:
        opened: of each block by its name.
        losses: (n,) float64, filled in place.
        steps: where the state goes.
    """

    def __init__(self, opened: Mapping[str, Passes], losses: torch.Tensor, steps: Steps) -> None:
        self._opened = opened
        self._losses = losses
        self._steps = steps
        self._generation = 0
        self._due = time.monotonic() + INTERVAL
        # One of each process, and one that is written before it takes the place of the last.
        state = sum(t.nbytes for passes in opened.values() for t in passes.state().values())
        size = (processes.count() + 1) * (state + losses.nbytes)
        steps.reserve(size, "the sums of the passes over the samples", f"{STEP}*")

    @property
    def finished(self) -> int:
        """Passes that have ended."""
        return self._any.finished

    def to_do(self, starts: Sequence[int]) -> list[int]:
        """The batches that this pass has not taken yet; the first process knows it for all.

        Args:
            starts: the first sample of each batch.
        """
        return [number for number, first in enumerate(starts) if not self._any.seen[first]]

    def resume(self) -> None:
        """Go on from what was kept: the first process with all of it, the others beside that."""
        self._generation = processes.agreed(self._take_in)
        if self._generation and not processes.is_first():
            own = self._generation
            self._restore(self._steps.awaited(STEP, lambda kept: int(kept["generation"]) == own))
            if self.finished < self._any.needed:
                for tensor in self._gathered().values():
                    tensor.zero_()

    def after_batch(self) -> None:
        """Keep the state if that is long ago."""
        began = time.monotonic()
        if began >= self._due:
            self._save()
            ended = time.monotonic()
            self._due = ended + max(INTERVAL, WORK_TO_WRITING * (ended - began))

    def end_pass(self) -> None:
        """End the pass of every block, with what all processes have gathered."""
        processes.add(list(self._gathered().values()))
        for passes in self._opened.values():
            passes.end_pass()
        # What is worked out in between (eigenvectors) may differ by machine.
        for passes in self._opened.values():
            processes.spread(list(passes.state().values()))
        self._generation += 1
        if processes.is_first():
            self._save()
        processes.barrier()

    @property
    def _any(self) -> Passes:
        return next(iter(self._opened.values()))

    def _take_in(self) -> int:
        """In the first process: what all had kept, now kept as its own; 0 without any."""
        base = self._steps.load(STEP)
        if base is None:
            return 0
        self._restore(base)
        if self.finished < self._any.needed:
            for other in range(1, int(base["processes"])):
                part = self._steps.load(_part(other))
                if part is not None and part["generation"] == base["generation"]:
                    for name, tensor in self._gathered().items():
                        tensor.add_(part[name].to(tensor.device))
        self._generation = int(base["generation"]) + 1
        self._save()
        return self._generation

    def _gathered(self) -> dict[str, torch.Tensor]:
        """What this pass has added up so far."""
        found = self._of_blocks(Passes.gathered)
        return found | ({"losses": self._losses} if self.finished == 0 else {})

    def _of_blocks(
        self, part: Callable[[Passes], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        return {
            f"{name}/{key}": tensor
            for name, passes in self._opened.items()
            for key, tensor in part(passes).items()
        }

    def _save(self) -> None:
        marks = {
            "generation": torch.tensor(self._generation),
            "processes": torch.tensor(processes.count()),
        }
        if processes.is_first():
            kept = self._of_blocks(Passes.state) | {"losses": self._losses}
            self._steps.save(STEP, kept | marks)
        else:
            self._steps.save(_part(processes.rank()), self._gathered() | marks)

    def _restore(self, base: dict[str, torch.Tensor]) -> None:
        states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self._opened}
        for key, tensor in base.items():
            block, _, name = key.rpartition("/")
            if block:
                states[block][name] = tensor
        for name, passes in self._opened.items():
            passes.restore(states[name])
        self._losses.copy_(base["losses"])


def _part(rank: int) -> str:
    return f"{STEP}-of-{rank:04d}"
