"""Ways to choose the layers, or sublayers, that are dropped.

    shortlist        ours: one after another; each step asks the model as it is, and measures the
                     few that the predicted loss or block influence name first, and the best of
                     those that the step before measured
    greedy           SLEB (arXiv 2402.09025): one after another; each step measures all that remain
    quadratic        ours: the least predicted loss, first and second order, of the dense model
    block_influence  ShortGPT (arXiv 2403.03853): the least 1 - cos(input, output)
    contiguous       arXiv 2403.17887: the run over which hidden states turn least
    taylor           the least |dL/dm| of a gate m = 1 at each layer (first order, as in Shortened
                     LLaMA, arXiv 2402.02834)
    random           drawn by the seed

Each plan is judged on the same held-out text, which no strategy sees.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from layerif.compress.depth.skipping import Skipping, first_of, hidden_of, run_body
from layerif.compress.depth.streams import Part
from layerif.compress.depth.units import Unit
from layerif.core.checkpoint import Steps
from layerif.core.progress import progress
from layerif.data.batching import Encoded, collate, pack
from layerif.errors import NumericalError
from layerif.model.modes import evaluation_mode
from layerif.model.opening import input_device
from layerif.search.depth_options import DepthSearchOptions
from layerif.search.depth_question import Answers, Floats, ask
from layerif.search.slopes import BACKWARD_TOKENS, mean_loss
from layerif.search.texts import tokens_of

# Where the units dropped so far are kept.
STEP = "dropped"


@dataclass(eq=False)
class DepthSearch:
    """A model of whose units some are dropped, and what a strategy may ask of it.

    Attributes:
        skipping: passes over units.
        parts: where the stream lies after each, layer by layer.
        units: all of them, in the order of the parts.
        drop: how many are dropped.
        asked, tried: texts that the model is asked on, and that candidates are measured on.
        options: of the search.
        steps: keep what is finished.
        passes: tokens run forward (through a part of the layers: as much less) and backward so far,
            and losses of candidates measured.
        trace: of each step, what was dropped.
    """

    skipping: Skipping
    parts: Sequence[Sequence[Part]]
    units: Sequence[Unit]
    drop: int
    asked: Sequence[Encoded]
    tried: Sequence[Encoded]
    options: DepthSearchOptions
    steps: Steps
    passes: dict[str, int] = field(
        default_factory=lambda: {"forward_tokens": 0, "backward_tokens": 0, "trials": 0}
    )
    trace: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> Any:
        return self.skipping.model

    def answers(self, dropped: Sequence[int] = (), *, backward: bool = True) -> Answers:
        """The question to the model without some units, by place."""
        out = [self.units[place] for place in dropped]
        self.passes["forward_tokens"] += tokens_of(self.asked)
        self.passes["backward_tokens"] += tokens_of(self.asked) * backward
        with self.skipping.without(out):
            return ask(
                self.model,
                self.skipping.layers,
                self.parts,
                self.asked,
                batch_tokens=min(self.options.batch_tokens, BACKWARD_TOKENS),
                dropped=frozenset(unit.key for unit in out),
                backward=backward,
            )

    def loss(
        self,
        dropped: Sequence[int],
        items: Sequence[Encoded],
        beginning: tuple[int, Sequence[torch.Tensor]] | None = None,
    ) -> float:
        """Mean loss of texts without some units.

        Args:
            dropped: their places.
            items: the texts.
            beginning: a layer, and its inputs, as `Skipping.beginning_at` takes them.
        """
        skipping = self.skipping
        with ExitStack() as inside:
            inside.enter_context(evaluation_mode(self.model))
            inside.enter_context(skipping.without([self.units[place] for place in dropped]))
            # Last, so that layers below, dropped or not, hand on what it is given.
            if beginning is not None:
                inside.enter_context(skipping.beginning_at(*beginning))
            return mean_loss(self.model, items, batch_tokens=self.options.batch_tokens)

    def trials(self, dropped: Sequence[int], candidates: Sequence[int]) -> list[float]:
        """Mean loss of the texts for trials without each of some more units.

        Layers below a candidate do what they did without it, so they run once for all.
        """
        layers = [self.units[place].layer for place in candidates]
        with self.skipping.keeping_inputs({*layers}) as inputs:
            self.loss(dropped, self.tried)
        count = len(self.skipping.layers)
        run = count + sum(count - layer for layer in layers)
        self.passes["forward_tokens"] += round(tokens_of(self.tried) * run / count)
        self.passes["trials"] += len(candidates)
        return [
            self.loss([*dropped, place], self.tried, (layer, inputs[layer]))
            for place, layer in zip(candidates, layers, strict=True)
        ]

    def measured_last(self) -> dict[int, float]:
        """The loss without each candidate of the last step, by place, but the one that went."""
        if not self.trace:
            return {}
        places = {unit.key: place for place, unit in enumerate(self.units)}
        last = self.trace[-1]
        return {places[k]: loss for k, loss in last["tried"].items() if k != last["dropped"]}

    def one_by_one(self, among: Callable[[Sequence[int]], Sequence[int]]) -> list[int]:
        """Drop unit after unit: of those that `among` names, the one whose loss is least.

        What is finished is kept, and found again.

        Args:
            among: places of candidates, from the places dropped so far.
        """
        dropped: list[int] = []
        began = time.perf_counter()
        if (kept := self.steps.load(STEP)) is not None:
            record = json.loads(bytes(kept["record"].tolist()))
            dropped, self.trace = record["dropped"], record["trace"]
            self.passes = record["passes"]
            began -= self.trace[-1]["seconds"]
        with progress("dropping", self.drop) as advance:
            advance(len(dropped))
            while len(dropped) < self.drop:
                candidates = among(dropped)
                losses = self.trials(dropped, candidates)
                best = int(np.argmin(losses))
                dropped.append(candidates[best])
                self.trace.append(
                    {
                        "dropped": self.units[dropped[-1]].key,
                        "loss": losses[best],
                        "tried": {
                            self.units[place].key: loss
                            for place, loss in zip(candidates, losses, strict=True)
                        },
                        "seconds": round(time.perf_counter() - began, 3),
                    }
                )
                record = {"dropped": dropped, "trace": self.trace, "passes": self.passes}
                written = torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)
                self.steps.save(STEP, {"record": written})
                advance()
        return dropped


@dataclass(frozen=True)
class DepthStrategy:
    """A way to choose what is dropped.

    Attributes:
        run: the places of the units that are dropped, in the order in which they are.
        metric: what it goes by, in words, for the record.
        backward: whether it makes backward passes.
    """

    run: Callable[[DepthSearch], Sequence[int]]
    metric: str
    backward: bool = False


def lowest(values: Floats, count: int) -> list[int]:
    """The places of the lowest numbers, lowest first; NaN last, of equal ones the lower place."""
    return [int(place) for place in np.argsort(values, kind="stable")[:count]]


def _shortlist(search: DepthSearch) -> list[int]:
    count = search.options.candidates

    def among(dropped: Sequence[int]) -> list[int]:
        found = search.answers(dropped)
        left = len(search.units) - len(dropped)
        lists = [lowest(values, min(count, left)) for values in (found.cost, found.influence)]
        before = search.measured_last()
        lists.append(sorted(before, key=lambda place: before[place])[:count])
        return list(dict.fromkeys(place for each in lists for place in each))

    return search.one_by_one(among)


def _greedy(search: DepthSearch) -> list[int]:
    places = range(len(search.units))
    return search.one_by_one(lambda dropped: [p for p in places if p not in dropped])


def _contiguous(search: DepthSearch) -> list[int]:
    distances = angular_distances(
        search.skipping,
        search.asked,
        search.drop,
        batch_tokens=search.options.batch_tokens,
    )
    search.passes["forward_tokens"] += tokens_of(search.asked)
    first = int(np.argmin(distances))
    return list(range(first, first + search.drop))


def _random(search: DepthSearch) -> list[int]:
    generator = np.random.default_rng(search.options.seed)
    drawn = generator.choice(len(search.units), search.drop, replace=False)
    return sorted(int(place) for place in drawn)


@torch.no_grad()
def angular_distances(
    skipping: Skipping, items: Sequence[Encoded], run: int, *, batch_tokens: int
) -> Floats:
    """(layers - run + 1,) mean angle between the inputs of layer l and of layer l + run, over pi.

    Over all tokens, where the paper (arXiv 2403.17887) takes the last one of each text. What comes
    after the last layer is the input of the layer above it.

    Raises:
        NumericalError: hidden states are not finite.
    """
    model, layers = skipping.model, skipping.layers
    sums, tokens = np.zeros(len(layers) - run + 1), 0
    streams: list[torch.Tensor] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        streams.append(hidden_of(args, kwargs).clone())

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        streams.append(first_of(output).clone())

    with ExitStack() as hooks, evaluation_mode(model):
        for layer in layers.modules:
            hooks.enter_context(layer.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.enter_context(layers.modules[-1].register_forward_hook(leave))
        # Chunks and examples alike: no padding is counted, since each goes by itself where lengths
        # differ.
        for group in _of_one_length(pack(items, batch_tokens, model)):
            streams.clear()
            inputs = collate(group, device=input_device(model)).inputs
            run_body(model, inputs)
            for first in range(len(sums)):
                x = streams[first].flatten(2).double()
                y = streams[first + run].to(x.device).flatten(2).double()
                norms = x.norm(dim=-1) * y.norm(dim=-1)
                cosine = (x * y).sum(-1) / norms.where(norms > 0, 1)
                sums[first] += float(cosine.clamp(-1, 1).arccos().sum()) / np.pi
            tokens += tokens_of(group)
    if not np.isfinite(sums).all():
        raise NumericalError(
            "the hidden states of the calibration text are not finite; try dtype='float32'"
        )
    return sums / tokens


def _of_one_length(groups: Sequence[Sequence[Encoded]]) -> list[list[Encoded]]:
    found = []
    for group in groups:
        lengths = {len(item.input_ids) for item in group}
        found += [[i for i in group if len(i.input_ids) == own] for own in sorted(lengths)]
    return found


SHORTLIST = DepthStrategy(_shortlist, "loss without each of a few layers", backward=True)
GREEDY = DepthStrategy(_greedy, "loss without each layer")
QUADRATIC = DepthStrategy(
    lambda search: lowest(search.answers().cost, search.drop),
    "predicted loss, first and second order",
    backward=True,
)
BLOCK_INFLUENCE = DepthStrategy(
    lambda search: lowest(search.answers(backward=False).influence, search.drop),
    "block_influence",
)
CONTIGUOUS = DepthStrategy(_contiguous, "angular distance over a run of layers")
TAYLOR = DepthStrategy(
    lambda search: lowest(np.abs(search.answers().slope), search.drop),
    "gradient of each layer's gate",
    backward=True,
)
RANDOM = DepthStrategy(_random, "random")
