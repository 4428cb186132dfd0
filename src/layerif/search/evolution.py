"""An evolutionary search for sparsities, in the manner of EvoPress (arXiv 2410.14649).

Offspring of the best plan so far move a few weights' worth of zeros from one projection to another,
so the total stays exact whatever the projections' sizes. They are measured in stages: many on few
tokens, the survivors on more, and the last stage on texts that are always the same, where the
parent competes; so the loss there never rises. It needs forward passes only, many of them.

The order in which weights go is worked out once, on the uniformly pruned model, so that a move
re-masks two projections. EvoPress itself compares within groups of equal size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from layerif.artifacts import Allocation
from layerif.compress.pruning.saving import refuse_packed
from layerif.core.choices import SaliencyMethod, check_choice
from layerif.core.progress import progress
from layerif.data import Corpus, Task
from layerif.data.batching import Encoded
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.opening import Tokenizer
from layerif.search.moves import Counts, initial_counts, mutated
from layerif.search.operating_point import OperatingPoint
from layerif.search.order import Prunable, RemovalOrder
from layerif.search.planning import Units, calibration_batches, plan_of
from layerif.search.sensitivity import mean_loss
from layerif.search.texts import texts_for, tokens_of


@dataclass(frozen=True)
class Generation:
    """The best plan after a generation.

    Attributes:
        generation: its number; 0 is the uniform plan.
        loss: of the last stage's texts, in nats a token.
        evaluations: losses measured so far, of whatever length.
        tokens: run forward so far for them.
        seconds: since the search began, the orders' own included.
    """

    generation: int
    loss: float
    evaluations: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Evolution:
    """What the search found, and how it went.

    Attributes:
        plan: by projections, of the exact total.
        trace: generation by generation; the loss never rises.
    """

    plan: Allocation
    trace: list[Generation]


def evolve(
    model: Any,
    sparsity: float,
    *,
    tokenizer: Tokenizer,
    calibration: Corpus,
    target: Corpus | Task | None = None,
    method: SaliencyMethod = "wanda",
    seconds: float | None = None,
    evaluations: int | None = None,
    offspring: int = 16,
    stages: Sequence[tuple[int, int]] = ((1024, 4), (8192, 1)),
    step: float = 0.02,
    below: float = 0.25,
    above: float = 0.2,
    samples: int = 32,
    context_length: int = 512,
    seed: int = 0,
    batch_tokens: int = 2048,
) -> Evolution:
    """Search for the sparsities of projections whose pruned model has the lowest loss.

    The model is left as before. With a limit in evaluations the result depends on the seed
    alone; with one in seconds also on the machine.

    Args:
        model: a causal LM of transformers.
        sparsity: S, the fraction of zeros over all projections, 0 to 1.
        tokenizer: the model's tokenizer.
        calibration: a corpus, whose calibration part is used.
        target: what the loss is taken on, as in `allocate_marginal`.
        method: saliency that weights go by; `wanda` or `magnitude`.
        seconds, evaluations: where the search ends, at the earlier; one of the two is needed. A
            generation that is not finished then is dropped.
        offspring: of each generation.
        stages: tokens of text and survivors of each stage; the last one has a single survivor.
        step: zeros of one move, as a fraction of the smaller projection's weights.
        below, above: no projection goes further from S than this.
        samples, context_length: chunks of calibration text and their length, as in `prune`.
        seed: of the draws of text and of moves.
        batch_tokens: tokens run at once.

    Raises:
        InputError: a value is out of its range, a text too short, or a weight quantised.
        NumericalError: activations or a loss are not finite.
    """
    began = time.perf_counter()
    _check(seconds, evaluations, offspring, stages, step)
    check_choice(method, SaliencyMethod, "saliency")
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    refuse_packed(layers.projections)
    units = Units.among(layers, "projection", sparsity, below=below, above=above)
    texts = texts_for(
        model,
        tokenizer,
        calibration,
        target,
        samples=samples,
        context_length=context_length,
        held_out_tokens=stages[-1][0],
        seed=seed,
    )
    batches = calibration_batches(model, texts, batch_tokens)
    with OperatingPoint.held(model, layers, batches, method) as point:
        orders: dict[int, RemovalOrder] = {}

        def see(row: int, order: Prunable) -> None:
            assert isinstance(order, RemovalOrder)
            orders[row] = order

        point.prune(units.spread(units.uniform()), see)
        search = _Search(
            point,
            [orders[row] for row in range(len(orders))],
            Limit(seconds, evaluations, began),
            np.random.default_rng(seed),
            batch_tokens,
        )
        best, trace = search.run(
            units,
            pool=texts.pool,
            # No other stage sees these, and norms do not come from them.
            final=texts.held_out,
            offspring=offspring,
            stages=stages,
            step=step,
        )
    how = {
        "metric": "loss of the pruned model",
        "map": "evolution",
        "method": method,
        "granularity": "projection",
        "offspring": offspring,
        "stages": [list(stage) for stage in stages],
        "step": step,
        "bounds": [units.low, units.high],
        "target": texts.origin,
        "calibration": {
            "name": calibration.name,
            "samples": samples,
            "context_length": context_length,
            "seed": seed,
        },
        "seconds": round(time.perf_counter() - began, 3),
        "trace": [asdict(entry) for entry in trace],
    }
    plan = plan_of(model, layers, (best / units.sizes).tolist(), units.total, how)
    return Evolution(plan, trace)


@dataclass
class Limit:
    """Where a search ends.

    Attributes:
        seconds, evaluations: at most; None is no limit.
        began: reading of the clock at the beginning.
        done: evaluations so far.
        tokens: run forward for them.
    """

    seconds: float | None
    evaluations: int | None
    began: float
    done: int = 0
    tokens: int = 0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    @property
    def reached(self) -> bool:
        return (self.seconds is not None and self.elapsed >= self.seconds) or (
            self.evaluations is not None and self.done >= self.evaluations
        )


class _LimitReached(Exception):
    """Ends a generation in the middle of it."""


@dataclass
class _Search:
    """The generations, on a model whose orders of removal are known."""

    point: OperatingPoint
    orders: list[RemovalOrder]
    limit: Limit
    generator: np.random.Generator
    batch_tokens: int
    _current: Counts | None = None

    def run(
        self,
        units: Units,
        *,
        pool: Sequence[Encoded],
        final: Sequence[Encoded],
        offspring: int,
        stages: Sequence[tuple[int, int]],
        step: float,
    ) -> tuple[Counts, list[Generation]]:
        """The best counts of zeros, and the trace."""
        best = initial_counts(units)
        loss = self._loss(best, final)
        trace = [self._entry(0, loss)]
        limit = self.limit
        total = limit.evaluations if limit.evaluations is not None else (limit.seconds or 0.0)
        with progress("evolutionary search", total) as advance:
            told = 0.0
            while not limit.reached:
                children = [mutated(best, units, step, self.generator) for _ in range(offspring)]
                alive = [child for child in children if child is not None]
                if not alive:
                    break
                try:
                    for tokens, survivors in stages[:-1]:
                        drawn = self._drawn(pool, tokens)
                        alive = self._fittest(alive, drawn, survivors)
                    losses = [self._measured(child, final) for child in alive]
                except _LimitReached:
                    break
                winner = int(np.argmin(losses))
                if losses[winner] < loss:
                    best, loss = alive[winner], losses[winner]
                trace.append(self._entry(len(trace), loss))
                spent = float(limit.done) if limit.evaluations is not None else limit.elapsed
                advance(spent - told)
                told = spent
        return best, trace

    def _fittest(
        self, alive: list[Counts], items: Sequence[Encoded], survivors: int
    ) -> list[Counts]:
        losses = [self._measured(child, items) for child in alive]
        return [alive[i] for i in np.argsort(losses, kind="stable")[:survivors]]

    def _measured(self, counts: Counts, items: Sequence[Encoded]) -> float:
        if self.limit.reached:
            raise _LimitReached
        return self._loss(counts, items)

    def _loss(self, counts: Counts, items: Sequence[Encoded]) -> float:
        """Loss of the model pruned so; what stands as it should is left alone."""
        for row, count in enumerate(counts.tolist()):
            if self._current is None or count != self._current[row]:
                self.point.take_out(row, self.orders[row], count)
        self._current = counts
        self.limit.done += 1
        self.limit.tokens += tokens_of(items)
        return mean_loss(self.point, items, batch_tokens=self.batch_tokens)

    def _drawn(self, pool: Sequence[Encoded], tokens: int) -> list[Encoded]:
        """Texts of the pool in a new order, up to `tokens` tokens."""
        drawn: list[Encoded] = []
        for place in self.generator.permutation(len(pool)).tolist():
            drawn.append(pool[place])
            if tokens_of(drawn) >= tokens:
                break
        return drawn

    def _entry(self, generation: int, loss: float) -> Generation:
        limit = self.limit
        return Generation(generation, loss, limit.done, limit.tokens, round(limit.elapsed, 3))


def _check(
    seconds: float | None,
    evaluations: int | None,
    offspring: int,
    stages: Sequence[tuple[int, int]],
    step: float,
) -> None:
    if seconds is None and evaluations is None:
        raise InputError("the search goes on until a limit: give seconds, evaluations, or both")
    for name, value in (("seconds", seconds), ("evaluations", evaluations)):
        if value is not None and not value > 0:
            raise InputError(f"the limit in {name} must be above 0, and is {value}")
    if offspring < 1:
        raise InputError(f"at least 1 offspring is needed, not {offspring}")
    if not stages or stages[-1][1] != 1 or any(min(stage) < 1 for stage in stages):
        raise InputError(
            "stages are pairs of tokens and survivors, each at least 1, and the last one has a "
            f"single survivor, as in ((1024, 4), (8192, 1)); not {stages!r}"
        )
    if not 0 < step < 1:
        raise InputError(f"step must be between 0 and 1, and is {step}")
