"""Sparsities moved by what they are worth: a few rounds of pruning, measuring and moving."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerif.artifacts import Allocation
from layerif.compress.pruning.saving import refuse_packed
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.choices import Granularity, PruningMethod, check_choice
from layerif.core.progress import note, progress
from layerif.data import Corpus, Task
from layerif.data.batching import Encoded
from layerif.errors import InputError
from layerif.estimates import note_memory
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.opening import Tokenizer
from layerif.search.operating_point import OperatingPoint
from layerif.search.order import Band, Prunable
from layerif.search.planning import Units, calibration_batches, plan_of
from layerif.search.sensitivity import mean_loss, sensitivities
from layerif.search.texts import Texts, texts_for, tokens_of

# The step shrinks by this from round to round, and by half where a round made things worse.
DECAY = 0.8
SETBACK = 0.5
# Tokens of a backward pass.
BACKWARD_TOKENS = 1024
# No unit moves further than so many steps at once.
CLIP = 2.5
# Rounds in a row that make things worse, after which no more are tried.
PATIENCE = 2


@dataclass(frozen=True, eq=False)
class Round:
    """The pruned model at one list of sparsities.

    Attributes:
        sparsities: (units,).
        held_out_loss: mean loss of the held-out texts, in nats a token.
        gradient: (units,) g; None where nothing was to come after it.
        seconds: that it took.
    """

    sparsities: NDArray[np.float64]
    held_out_loss: float
    gradient: NDArray[np.float64] | None
    seconds: float

    def tensors(self) -> dict[str, torch.Tensor]:
        """As a step keeps it."""
        kept = {
            "sparsities": torch.from_numpy(self.sparsities),
            "figures": torch.tensor([self.held_out_loss, self.seconds], dtype=torch.float64),
        }
        return kept | ({} if self.gradient is None else {"g": torch.from_numpy(self.gradient)})

    @classmethod
    def of(cls, kept: dict[str, torch.Tensor]) -> Round:
        """Back from what a step kept."""
        loss, seconds = kept["figures"].tolist()
        gradient = kept["g"].numpy() if "g" in kept else None
        return cls(kept["sparsities"].numpy(), loss, gradient, seconds)


HELD = 2  # times the bytes of the projections' weights, beside the model


def allocate_marginal(
    model: Any,
    sparsity: float,
    *,
    tokenizer: Tokenizer,
    calibration: Corpus,
    target: Corpus | Task | None = None,
    method: PruningMethod = "wanda",
    granularity: Granularity = "projection",
    rounds: int = 5,
    delta: float = 0.05,
    eta: float = 0.06,
    tokens: int = 4096,
    held_out_tokens: int = 8192,
    below: float = 0.25,
    above: float = 0.2,
    samples: int = 16,
    context_length: int = 512,
    seed: int = 0,
    batch_tokens: int = 2048,
    steps: Steps | None = None,
) -> Allocation:
    """Sparsities by the influence of weights at the operating point.

    From the uniform plan on, each round prunes the model as `layerif prune` would, takes the
    predicted change of the loss per unit of density of each unit, and moves sparsity to where it
    costs least. A round that does not lower the loss of the held-out texts is taken back and tried
    with half the step; the best round is the plan. The model is left as before.

    Args:
        model: a causal LM of transformers.
        sparsity: S, the fraction of zeros over all projections, 0 to 1.
        tokenizer: the model's tokenizer.
        calibration: a corpus, whose calibration part is used.
        target: what the loss is taken on: another corpus or a task's completions; None for the
            calibration text.
        method: how each round prunes; as the plan is to be used.
        granularity: whether every `projection` has a sparsity of its own, or every `layer`.
        rounds: moves, at least 1.
        delta: half the width of the band of weights, as a fraction of a projection's.
        eta: the first round's step, in sparsity, of a unit that is worth the mean absolute
            deviation more than all are on average.
        tokens: of text that each round's gradient is taken on.
        held_out_tokens: of text that rounds are judged by.
        below, above: no unit goes further from S than this.
        samples, context_length: chunks of calibration text and their length, as in `prune`.
        seed: of the draws of text.
        batch_tokens: tokens run at once; in the backward pass, which keeps of them what is most of
            the memory, at most 1,024.
        steps: keeps finished rounds, so that a run cut short can go on; None keeps nothing.

    Returns:
        A plan by projections of exactly S, with losses, tokens and seconds of all rounds in `how`.

    Raises:
        InputError: a value is out of its range, a text too short, or a weight quantised.
        NumericalError: activations, a loss or a sensitivity are not finite.
    """
    _check(rounds=rounds, delta=delta, eta=eta, tokens=tokens)
    check_choice(method, PruningMethod, "pruning method")
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    refuse_packed(layers.projections)
    units = Units.among(layers, granularity, sparsity, below=below, above=above)
    texts = texts_for(
        model,
        tokenizer,
        calibration,
        target,
        samples=samples,
        context_length=context_length,
        held_out_tokens=held_out_tokens,
        seed=seed,
    )
    batches = calibration_batches(model, texts, batch_tokens)
    # Beside a copy of the projections' weights, the order in which each loses them.
    kept = HELD * sum(projection.weight.nbytes for projection in layers.projections)
    note_memory(model, "marginal allocation", "inputs", batch_tokens, kept=kept)
    with OperatingPoint.held(model, layers, batches, method) as point:
        runner = _Runner(point, units, texts, texts.rounds(rounds, tokens), delta, batch_tokens)
        found, etas = runner.search(eta, steps or NO_STEPS)
    best = min(range(len(found)), key=lambda number: found[number].held_out_loss)
    how = {
        "metric": "influence at the operating point",
        "map": "marginal",
        "method": method,
        "granularity": granularity,
        "delta": delta,
        "eta": eta,
        "bounds": [units.low, units.high],
        "target": texts.origin,
        "calibration": {
            "name": calibration.name,
            "samples": samples,
            "context_length": context_length,
            "seed": seed,
        },
        "best_round": best,
        "rounds": [
            {
                "round": number,
                "eta": etas[number],
                "held_out_loss": each.held_out_loss,
                "seconds": round(each.seconds, 3),
            }
            for number, each in enumerate(found)
        ],
        "tokens": runner.tokens(found),
        "seconds": round(sum(each.seconds for each in found), 3),
    }
    sparsities = units.spread(found[best].sparsities)
    return plan_of(model, layers, sparsities, units.total, how)


def move(
    sparsities: NDArray[np.float64], gradient: NDArray[np.float64], units: Units, eta: float
) -> NDArray[np.float64]:
    """(units,) the next sparsities: s + eta z, at exactly the total and within the bounds."""
    direction = standardised(gradient, units)
    return units.projected(sparsities + eta * direction) if direction.any() else sparsities


def standardised(gradient: NDArray[np.float64], units: Units) -> NDArray[np.float64]:
    """(units,) z: g minus its mean weighted by size, over its mean absolute value, within 2.5.

    0 where all are alike.
    """
    centred = gradient - np.average(gradient, weights=units.sizes)
    scale = float(np.abs(centred).mean())
    return (centred / scale).clip(-CLIP, CLIP) if scale else np.zeros_like(centred)


@dataclass(frozen=True, eq=False)
class _Runner:
    """The rounds on one model and its texts."""

    point: OperatingPoint
    units: Units
    texts: Texts
    gradient_texts: list[list[Encoded]]
    delta: float
    batch_tokens: int

    def search(self, eta: float, steps: Steps) -> tuple[list[Round], list[float]]:
        """All rounds, the uniform plan first, and the step that led to each."""
        last = len(self.gradient_texts)
        found: list[Round] = []
        etas = [0.0]
        best: Round | None = None
        sparsities, setbacks, shrunk = self.units.uniform(), 0, 1.0
        with progress("influence at the operating point", last + 1) as advance:
            for number in range(last + 1):
                bar = None if best is None else best.held_out_loss
                current = self._round(number, sparsities, bar, steps)
                found.append(current)
                advance()
                change = "" if best is None else f", step {etas[number]:.4f}"
                note(f"round {number}: held-out loss {current.held_out_loss:.4f}{change}")
                if best is None or current.held_out_loss < best.held_out_loss:
                    best, setbacks = current, 0
                else:
                    setbacks, shrunk = setbacks + 1, shrunk * SETBACK
                if number == last or setbacks == PATIENCE or best.gradient is None:
                    break
                etas.append(eta * DECAY**number * shrunk)
                sparsities = move(best.sparsities, best.gradient, self.units, etas[-1])
                if np.array_equal(sparsities, best.sparsities):
                    etas.pop()
                    break
        return found, etas

    def tokens(self, found: list[Round]) -> dict[str, int]:
        """Tokens of calibration (each layer runs them twice), of judging, and of gradients."""
        taken = zip(found, self.gradient_texts, strict=False)
        return {
            "calibration": tokens_of(self.texts.calibration) * len(found),
            "held_out": tokens_of(self.texts.held_out) * len(found),
            "gradient": sum(tokens_of(items) for each, items in taken if each.gradient is not None),
        }

    def _round(
        self, number: int, sparsities: NDArray[np.float64], bar: float | None, steps: Steps
    ) -> Round:
        """Prune, judge, and where it is better than `bar` and more is to come, take g."""
        name = f"round-{number:03d}"
        kept = steps.load(name)
        if kept is not None:
            return Round.of(kept)
        began = time.perf_counter()
        spread = self.units.spread(sparsities)
        bands: dict[int, Band] = {}
        more = number < len(self.gradient_texts)

        def see(row: int, prunable: Prunable) -> None:
            if more:
                bands[row] = prunable.band(spread[row], self.delta)

        self.point.prune(spread, see)
        loss = mean_loss(self.point, self.texts.held_out, batch_tokens=self.batch_tokens)
        gradient = None
        if more and (bar is None or loss < bar):
            measured = sensitivities(
                self.point,
                [bands[row] for row in range(len(bands))],
                self.gradient_texts[number],
                batch_tokens=min(self.batch_tokens, BACKWARD_TOKENS),
            )
            gradient = measured.per_density(self.units.of, self.units.mean_size)
        found = Round(sparsities, loss, gradient, time.perf_counter() - began)
        steps.save(name, found.tensors())
        return found


def _check(*, rounds: int, delta: float, eta: float, tokens: int) -> None:
    if rounds < 1:
        raise InputError(f"at least 1 round is needed, not {rounds}")
    if not 0 < delta <= 0.5:
        raise InputError(f"delta must be above 0 and at most 0.5, and is {delta}")
    if not 0 < eta <= 1:
        raise InputError(f"eta must be above 0 and at most 1, and is {eta}")
    if tokens < 1:
        raise InputError(f"a round takes at least 1 token of text, not {tokens}")
