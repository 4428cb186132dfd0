"""A plan moved by what levels are worth: a few rounds of compressing, measuring and moving."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from layerif.core.progress import note, progress
from layerif.data.batching import Encoded
from layerif.search.base import Found, Kind, Search, State, Strategy
from layerif.search.quadratic import started
from layerif.search.texts import tokens_of, up_to

# The step shrinks by this from round to round, and by half where a round made things worse.
DECAY = 0.8
SETBACK = 0.5
# The furthest that a unit moves at once, in steps.
CLIP = 2.5
# Rounds in a row that make things worse, after which no more are tried.
PATIENCE = 2


@dataclass(frozen=True, eq=False)
class Round:
    """The compressed model in one state.

    Attributes:
        state: (units,).
        held_out_loss: mean loss of the held-out texts, in nats a token.
        gradient: (units,) g; None where no move was to follow.
        seconds: that it took.
    """

    state: State
    held_out_loss: float
    gradient: State | None
    seconds: float

    def tensors(self) -> dict[str, torch.Tensor]:
        """As a step keeps it."""
        kept = {
            "sparsities": torch.from_numpy(self.state),
            "figures": torch.tensor([self.held_out_loss, self.seconds], dtype=torch.float64),
        }
        return kept | ({} if self.gradient is None else {"g": torch.from_numpy(self.gradient)})

    @classmethod
    def of(cls, kept: dict[str, torch.Tensor]) -> Round:
        """Back from what a step kept."""
        loss, seconds = kept["figures"].tolist()
        gradient = kept["g"].numpy() if "g" in kept else None
        return cls(kept["sparsities"].numpy(), loss, gradient, seconds)


def rounds(search: Search) -> Found:
    """Moves to where the budget costs least, each judged by the loss of the held-out texts.

    Each round compresses the model and takes the predicted change of the loss per unit of budget of
    each unit; the next one moves the plan by it. A round that does not lower the loss is taken back
    and tried with half the step. The best round is the plan. Where the plan of the quadratic
    question is worse than the uniform one, the second round begins from that.
    """
    options, kind = search.options, search.kind
    lots = search.texts.rounds(options.rounds, options.tokens)
    done: list[Round] = []
    etas = [0.0]
    best, bar = None, math.inf
    began = time.perf_counter()
    state, setbacks, shrunk = started(search), 0, 1.0
    asking = time.perf_counter() - began
    uniform = None
    if options.start == "quadratic":
        uniform = _round(search, "uniform", kind.start(), None, bar)
        bar = uniform.held_out_loss
        note(f"uniform: held-out loss {bar:.4f}")
    with progress("influence at the operating point", len(lots) + 1) as advance:
        for number, items in enumerate([*lots, None]):
            current = _round(search, f"round-{number:03d}", state, items, bar)
            done.append(current)
            advance()
            change = f", step {etas[number]:.4f}" if etas[number] else ""
            note(f"round {number}: held-out loss {current.held_out_loss:.4f}{change}")
            if current.held_out_loss < bar:
                best, bar, setbacks = current, current.held_out_loss, 0
            elif best is None:
                state, bar = kind.start(), math.inf
                etas.append(0.0)
                continue
            else:
                setbacks, shrunk = setbacks + 1, shrunk * SETBACK
            if items is None or setbacks == PATIENCE or best.gradient is None:
                break
            eta = options.eta * DECAY**number * shrunk
            state = move(best.state, best.gradient, kind, eta)
            if np.array_equal(state, best.state):
                break
            etas.append(eta)
    assert best is not None
    how = _record(search, done, etas, lots)
    return Found(best.state, how if uniform is None else _with_start(search, how, uniform, asking))


def _round(
    search: Search, name: str, state: State, items: list[Encoded] | None, bar: float
) -> Round:
    """Compress, judge, and where it is better than `bar` and more is to come, take g on `items`."""
    kept = search.steps.load(name)
    if kept is not None:
        return Round.of(kept)
    began = time.perf_counter()
    kind, compressor, levels = search.kind, search.compressor, search.kind.levels(state)
    around = kind.around(state)
    if items is None:
        compressor.at(levels)
    else:
        changes = compressor.at(levels, lambda row, unit: unit.change(*around[row]))
    loss = search.loss(search.texts.held_out)
    gradient = None
    if items is not None and loss < bar:
        gradient = kind.worth(search.slopes(changes, items), around)
    found = Round(state, loss, gradient, time.perf_counter() - began)
    search.steps.save(name, found.tensors())
    return found


def _record(
    search: Search, done: list[Round], etas: list[float], lots: list[list[Encoded]]
) -> dict[str, Any]:
    """How the rounds went, with their tokens; each layer runs those of calibration twice."""
    taken = zip(done, lots, strict=False)
    return {
        **search.kind.moves(),
        "eta": search.options.eta,
        "best_round": min(range(len(done)), key=lambda number: done[number].held_out_loss),
        "rounds": [
            {
                "round": number,
                "eta": etas[number],
                "held_out_loss": each.held_out_loss,
                "seconds": round(each.seconds, 3),
            }
            for number, each in enumerate(done)
        ],
        "tokens": {
            "calibration": tokens_of(search.texts.calibration) * len(done),
            "held_out": tokens_of(search.texts.held_out) * len(done),
            "gradient": sum(tokens_of(items) for each, items in taken if each.gradient is not None),
        },
        "seconds": round(sum(each.seconds for each in done), 3),
    }


def _with_start(
    search: Search, how: dict[str, Any], uniform: Round, asking: float
) -> dict[str, Any]:
    """The record of rounds with what came before them: the question, and the uniform plan."""
    texts, tokens = search.texts, dict(how["tokens"])
    tokens["calibration"] += 2 * tokens_of(texts.calibration)
    tokens["held_out"] += tokens_of(texts.held_out)
    tokens["gradient"] += tokens_of(up_to(texts.pool, search.options.tokens))
    seconds = round(how["seconds"] + uniform.seconds + asking, 3)
    loss = {"held_out_loss": uniform.held_out_loss}
    return how | {"uniform": loss, "tokens": tokens, "seconds": seconds}


def move(state: State, gradient: State, kind: Kind, eta: float) -> State:
    """(units,) the next state: s + eta z, at exactly the total and within the bounds."""
    direction = standardised(gradient, kind)
    return kind.projected(state + eta * direction) if direction.any() else state


def standardised(gradient: State, kind: Kind) -> State:
    """(units,) z: g minus its mean weighted by size, over its mean absolute value, within 2.5.

    0 where all are alike.
    """
    centred = gradient - np.average(gradient, weights=kind.sizes)
    scale = float(np.abs(centred).mean())
    return (centred / scale).clip(-CLIP, CLIP) if scale else np.zeros_like(centred)


MARGINAL = Strategy(rounds, "influence at the operating point", "inputs")
