"""An evolutionary search, in the manner of EvoPress (arXiv 2410.14649).

Offspring of the best plan so far move a little of the budget from one unit to another, so the total
stays exact whatever the units' sizes. They are measured in stages: many on few tokens, the
survivors on more, and the last stage on texts that are always the same, where the parent competes;
so the loss there never rises. It needs forward passes only, many of them.

What compressing a projection depends on is worked out once, on the uniformly compressed model, so
that a move sets two units again. EvoPress itself compares within groups of equal size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from layerif.compress.compressor import Compressible
from layerif.core.progress import progress
from layerif.data.batching import Encoded
from layerif.search.base import Found, Search, State, Strategy
from layerif.search.options import SearchOptions
from layerif.search.texts import tokens_of


@dataclass(frozen=True)
class Generation:
    """The best plan after a generation.

    Attributes:
        generation: its number; 0 is the uniform plan.
        loss: of the last stage's texts, in nats a token.
        evaluations: losses measured so far, of whatever length.
        tokens: run forward so far for them.
        seconds: since the search began, compressing the uniform plan included.
    """

    generation: int
    loss: float
    evaluations: int
    tokens: int
    seconds: float


def evolution(search: Search) -> Found:
    """Generations until the limit; one that is not finished then is dropped."""
    options, kind = search.options, search.kind
    limit = _Limit(options)
    stages = [tuple(map(int, stage.split(":"))) for stage in options.stages]
    generator = np.random.default_rng(options.seed)
    levels = kind.levels(kind.start())
    # No other stage sees the held-out texts, and no statistics come from them.
    fitness = _Fitness(search, limit, search.compressor.at(levels, lambda _row, unit: unit), levels)
    best = kind.whole(kind.start())
    loss = fitness.loss(best, search.texts.held_out)
    trace = [limit.entry(0, loss)]
    with progress("evolutionary search", limit.total) as advance:
        told = 0.0
        while not limit.reached:
            children = [
                kind.mutated(best, options.step, generator) for _ in range(options.offspring)
            ]
            alive = [child for child in children if child is not None]
            if not alive:
                break
            try:
                for tokens, survivors in stages:
                    drawn = _drawn(search.texts.pool, tokens, generator)
                    losses = [fitness.measured(child, drawn) for child in alive]
                    order = np.argsort(losses, kind="stable")
                    alive = [alive[i] for i in order[:survivors]]
                losses = [fitness.measured(child, search.texts.held_out) for child in alive]
            except _LimitReached:
                break
            winner = int(np.argmin(losses))
            if losses[winner] < loss:
                best, loss = alive[winner], losses[winner]
            trace.append(limit.entry(len(trace), loss))
            spent = limit.spent
            advance(spent - told)
            told = spent
    how = {
        "offspring": options.offspring,
        "stages": [*map(list, stages), [options.held_out_tokens, 1]],
        "step": options.step,
        "seconds": round(limit.elapsed, 3),
        "trace": [asdict(entry) for entry in trace],
    }
    return Found(best, how)


@dataclass
class _Limit:
    """Where a search ends.

    Attributes:
        options: seconds and evaluations, at most; None is no limit.
        done: evaluations so far.
        tokens: run forward for them.
    """

    options: SearchOptions
    done: int = 0
    tokens: int = 0
    began: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    @property
    def total(self) -> float:
        """What `spent` comes to at the end."""
        return self.options.evaluations or self.options.seconds or 0.0

    @property
    def spent(self) -> float:
        return float(self.done) if self.options.evaluations is not None else self.elapsed

    @property
    def reached(self) -> bool:
        seconds, evaluations = self.options.seconds, self.options.evaluations
        return (seconds is not None and self.elapsed >= seconds) or (
            evaluations is not None and self.done >= evaluations
        )

    def entry(self, generation: int, loss: float) -> Generation:
        return Generation(generation, loss, self.done, self.tokens, round(self.elapsed, 3))


class _LimitReached(Exception):
    """Ends a generation in the middle of it."""


@dataclass
class _Fitness:
    """Losses of states.

    Attributes:
        units: the projections, compressible to any level.
        levels: that they have now.
    """

    search: Search
    limit: _Limit
    units: Sequence[Compressible]
    levels: Sequence[int]

    def measured(self, state: State, items: Sequence[Encoded]) -> float:
        """The loss, unless the limit is reached."""
        if self.limit.reached:
            raise _LimitReached
        return self.loss(state, items)

    def loss(self, state: State, items: Sequence[Encoded]) -> float:
        """Loss of the model compressed so; projections that have their level are left alone."""
        levels = self.search.kind.levels(state)
        for row, (now, wanted) in enumerate(zip(self.levels, levels, strict=True)):
            if now != wanted:
                self.search.compressor.set(row, self.units[row].at(wanted))
        self.levels = levels
        self.limit.done += 1
        self.limit.tokens += tokens_of(items)
        return self.search.loss(items)


def _drawn(pool: Sequence[Encoded], tokens: int, generator: np.random.Generator) -> list[Encoded]:
    """Texts of the pool in a new order, up to `tokens` tokens."""
    drawn: list[Encoded] = []
    for place in generator.permutation(len(pool)).tolist():
        drawn.append(pool[place])
        if tokens_of(drawn) >= tokens:
            break
    return drawn


EVOLUTION = Strategy(evolution, "loss of the pruned model")
