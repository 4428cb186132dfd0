"""An evolutionary search, in the manner of EvoPress (arXiv 2410.14649).

Offspring of the best plan so far move a little of the budget from one unit to another, so the total
stays exact whatever the units' sizes. They are measured in stages: many on few tokens, the
survivors on more, and the last stage on texts that are always the same, where the parent competes;
so the loss there never rises. It needs forward passes only, many of them.

What compressing a projection depends on is worked out once, on the uniformly compressed model, so
that a move sets two units again. EvoPress itself compares within groups of equal size.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from layerif.core.progress import progress
from layerif.data.batching import Encoded
from layerif.search.base import Found, Search, State, Strategy
from layerif.search.quadratic import started
from layerif.search.texts import tokens_of, up_to

# Where the last finished generation is kept.
STEP = "generation"


def evolution(search: Search) -> Found:
    """Generations until the limit; one that is not finished then is dropped."""
    options, kind = search.options, search.kind
    stages = [tuple(map(int, stage.split(":"))) for stage in options.stages]
    generator = np.random.default_rng(options.seed)
    began = time.perf_counter()
    kept = search.steps.load(STEP)
    # Before the model is held at the uniform plan: it may be asked as it was.
    start = started(search) if kept is None else None
    trials = _Trials(search, began)
    if kept is not None:
        record = json.loads(bytes(kept["record"].tolist()))
        best, trace = np.array(record["best"]), record["trace"]
        generator.bit_generator.state = record["draws"]
        trials.resume(trace[-1])
    else:
        assert start is not None
        best = kind.whole(start)
        trace = [trials.generation(0, trials.loss(best, search.texts.held_out))]
    with progress("evolutionary search", options.evaluations or options.seconds or 0) as advance:
        told = 0.0
        while not trials.ended:
            children = [kind.mutated(best, generator) for _ in range(options.offspring)]
            alive = [child for child in children if child is not None]
            if not alive:
                break
            try:
                for tokens, survivors in stages:
                    order = generator.permutation(len(search.texts.pool)).tolist()
                    drawn = up_to([search.texts.pool[place] for place in order], tokens)
                    ranks = np.argsort(trials.losses(alive, drawn), kind="stable")
                    alive = [alive[i] for i in ranks[:survivors]]
                # No other stage sees the held-out texts, and no statistics come from them.
                losses = trials.losses(alive, search.texts.held_out)
            except _LimitReached:
                break
            winner, loss = int(np.argmin(losses)), trace[-1]["loss"]
            if losses[winner] < loss:
                best, loss = alive[winner], losses[winner]
            trace.append(trials.generation(len(trace), loss))
            draws = generator.bit_generator.state
            record = {"best": best.tolist(), "trace": trace, "draws": draws}
            written = list(json.dumps(record).encode())
            search.steps.save(STEP, {"record": torch.tensor(written, dtype=torch.uint8)})
            spent = trials.done if options.evaluations else trials.elapsed
            advance(spent - told)
            told = spent
    how = {
        "offspring": options.offspring,
        "stages": [*map(list, stages), [options.held_out_tokens, 1]],
        **kind.moves(),
        "seconds": round(trials.elapsed, 3),
        "trace": trace,
    }
    return Found(best, how)


class _LimitReached(Exception):
    """Ends a generation in the middle of it."""


class _Trials:
    """Losses of states, counted.

    Attributes:
        done: losses so far.
        tokens: run forward for them.
    """

    def __init__(self, search: Search, began: float) -> None:
        self._search, self._began = search, began
        self._levels = search.kind.levels(search.kind.start())
        self._units = search.compressor.at(self._levels, lambda _row, unit: unit)
        self.done = self.tokens = 0

    @property
    def elapsed(self) -> float:
        """Seconds, those of runs that were cut short included."""
        return time.perf_counter() - self._began

    @property
    def ended(self) -> bool:
        """Whether a limit of the options is reached."""
        seconds, evaluations = self._search.options.seconds, self._search.options.evaluations
        return (seconds is not None and self.elapsed >= seconds) or (
            evaluations is not None and self.done >= evaluations
        )

    def generation(self, number: int, loss: float) -> dict[str, Any]:
        """The record of a finished generation; number 0 is the plan that it starts from.

        `loss` is that of its best plan on the held-out texts, in nats a token. The others are
        totals so far: losses measured, tokens run forward for them, and seconds, those for the
        start and for compressing the uniform plan included.
        """
        return {
            "generation": number,
            "loss": loss,
            "evaluations": self.done,
            "tokens": self.tokens,
            "seconds": round(self.elapsed, 3),
        }

    def resume(self, last: dict[str, Any]) -> None:
        """Count on from a generation."""
        self.done, self.tokens = last["evaluations"], last["tokens"]
        self._began = time.perf_counter() - last["seconds"]

    def losses(self, states: Sequence[State], items: Sequence[Encoded]) -> list[float]:
        """(states,) losses.

        Raises:
            _LimitReached: before all are measured.
        """
        found = []
        for state in states:
            if self.ended:
                raise _LimitReached
            found.append(self.loss(state, items))
        return found

    def loss(self, state: State, items: Sequence[Encoded]) -> float:
        """Loss of the model compressed so; projections that have their level are left alone."""
        levels = self._search.kind.levels(state)
        for row, (now, wanted) in enumerate(zip(self._levels, levels, strict=True)):
            if now != wanted:
                self._search.compressor.set(row, self._units[row].at(wanted))
        self._levels = levels
        self.done += 1
        self.tokens += tokens_of(items)
        return self._search.loss(items)


EVOLUTION = Strategy(evolution, "loss of the pruned model")
