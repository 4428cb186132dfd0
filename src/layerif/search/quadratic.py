"""A plan from the quadratic question: what each level would cost, asked of the whole model at once.

Where a change is not small, a slope alone misleads. For a change D of one projection's weights,
with a_t its inputs and e_t the gradient of the summed losses of a text's tokens at its outputs,

    q = 1/2 mean over tokens of sum_o e_to^2 (D a_t)_o^2         (diagonal)
    q = 1/2 mean over tokens of (e_t . D a_t)^2                  (token)

is the second-order change of the loss, each projection by itself: the Fisher information stands for
the Hessian. One forward and one backward pass on the model as it was serves all projections, with
one product more a level. The plan is the choice of levels with the least sum of q.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerif.compress.compressor import Change
from layerif.core.progress import note, progress
from layerif.data.batching import Batch, Encoded, collate, pack
from layerif.errors import InputError
from layerif.influence.estimators.factored import FactoredGradients
from layerif.model.layers import find_decoder_layers
from layerif.search.base import Found, Search, State, Strategy
from layerif.search.slopes import BACKWARD_TOKENS, Batched, over_gradients, refuse_infinite
from layerif.search.texts import tokens_of, up_to

STEP = "quadratic"


@dataclass(frozen=True)
class Expansion:
    """Predicted changes of the loss, in nats a token; each (projections, levels).

    Attributes:
        first: <dL/dW, D>.
        diagonal: q from the outputs one by one.
        token: q from each token as a whole.
        local: 1/2 mean |D a|^2, the error of the outputs whatever they are worth.
    """

    first: NDArray[np.float64]
    diagonal: NDArray[np.float64]
    token: NDArray[np.float64]
    local: NDArray[np.float64]


def expansion(
    model: Any,
    changes: Sequence[Sequence[Change]],
    items: Sequence[Encoded],
    *,
    batch_tokens: int,
    batched: Batched = collate,
) -> Expansion:
    """What changes of each projection would do to the loss of texts, to second order.

    Args:
        model: the causal LM as it is.
        changes: for each projection D of as many levels as of any other, on its device.
        items: the texts; each counts alike, whatever its length.
        batch_tokens: tokens of a batch, padding counted.
        batched: makes a batch of texts, with other labels than their own, say.

    Raises:
        NumericalError: a loss or a product is not finite; names the text or the projection.
    """
    projections = find_decoder_layers(model).projections
    sums = np.zeros((4, len(projections), len(changes[0])))

    def take(batch: Batch, row: int, gradients: FactoredGradients) -> None:
        # Of a sample's mean loss, which is 1 / c of its summed one.
        errors, inputs = gradients.errors, gradients.inputs
        c = batch.counts.to(errors.device, torch.float64)
        for place, change in enumerate(changes[row]):
            # As the model multiplies: sums are those of its own matrix product.
            delta = change()
            reached = (inputs.to(delta) @ delta.T).to(errors)  # (B, T, out)
            local = squares_of(reached)
            reached.mul_(errors)
            tokens = reached.sum(2).double()  # (B, T) e_t . D a_t
            squares = squares_of(reached)
            sums[0, row, place] += float(tokens.sum())
            sums[1, row, place] += float((squares * c).sum()) / 2
            sums[2, row, place] += float((tokens.square().sum(1) * c).sum()) / 2
            sums[3, row, place] += float((local / c).sum()) / 2

    tokens = min(batch_tokens, BACKWARD_TOKENS)
    with progress("quadratic question", len(pack(items, tokens, model))) as advance:
        over_gradients(model, items, take, batch_tokens=tokens, advance=advance, batched=batched)
    sums /= len(items)
    refuse_infinite(sums.transpose(1, 0, 2), projections)
    return Expansion(*sums)


def squares_of(values: torch.Tensor) -> torch.Tensor:
    """(B,) float64 the sums of squares of (B, T, out)."""
    each = values.flatten(1)
    return torch.linalg.vecdot(each, each).double()


def dense_plan(search: Search) -> State:
    """The state of least predicted loss, asked of the model as it was."""
    if not hasattr(search.kind, "asked"):
        raise InputError(
            "this kind of budget does not say which levels the quadratic question is asked at; "
            "start='uniform' with the strategy marginal or evolution needs none"
        )
    kept = search.steps.load(STEP)
    if kept is None:
        kind, options = search.kind, search.options
        asked, untouched = kind.asked(), kind.untouched()
        changes = search.compressor.at(
            untouched,
            lambda row, unit: [unit.change(untouched[row], level) for level in asked[row]],
        )
        items = up_to(search.texts.pool, options.tokens)
        found = expansion(search.model, changes, items, batch_tokens=options.batch_tokens)
        kept = {"q": torch.from_numpy(getattr(found, options.criterion))}
        search.steps.save(STEP, kept)
    return search.kind.solved(kept["q"].numpy())


def started(search: Search) -> State:
    """The state that a strategy starts from."""
    return dense_plan(search) if search.options.start == "quadratic" else search.kind.start()


def quadratic(search: Search) -> Found:
    """The plan of the quadratic question, or the uniform one where held-out texts prefer it."""
    began, kind = time.perf_counter(), search.kind
    losses = []
    tried = (kind.start(), dense_plan(search))
    for name, state in zip(("uniform", "quadratic"), tried, strict=True):
        search.compressor.at(kind.levels(state))
        losses.append(search.loss(search.texts.held_out))
        note(f"{name}: held-out loss {losses[-1]:.4f}")
    best = int(np.argmin(losses))
    how = {
        "criterion": search.options.criterion,
        "best_round": best,
        "rounds": [{"round": place, "held_out_loss": loss} for place, loss in enumerate(losses)],
        "tokens": {
            "calibration": tokens_of(search.texts.calibration) * 3,
            "held_out": tokens_of(search.texts.held_out) * 2,
            "gradient": tokens_of(up_to(search.texts.pool, search.options.tokens)),
        },
        "seconds": round(time.perf_counter() - began, 3),
    }
    return Found(tried[best], how)


QUADRATIC = Strategy(quadratic, "quadratic question", "inputs", held=4)
