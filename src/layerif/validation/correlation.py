"""How well scores predict a ground truth: rank correlation, an interval over the text, and chance.

The interval says how far the text decides, for these layers and this score. A score that has
nothing to do with the model correlates with so few layers too, and as surely: p says how often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from layerif.artifacts import Agreement, GroundTruth
from layerif.artifacts.results import SIGNIFICANCE
from layerif.core.choices import TruthKind
from layerif.errors import InputError
from layerif.evaluation.statistics import holm
from layerif.plans.maps.scores import check_scores

FloatArray = NDArray[np.float64]
RESAMPLES = 2000
ORDERS = 20_000
ROUNDING = 1e-9


def agreements(
    scores: Mapping[str, ArrayLike], truths: Mapping[TruthKind, GroundTruth], *, seed: int = 0
) -> dict[TruthKind, list[Agreement]]:
    """Each score beside each ground truth, the strongest correlation first.

    p is adjusted over all scores and ground truths together.

    Args:
        scores: (layers,) each, by name.
        truths: the costs or gains, by their kind.
        seed: of the bootstrap, and of the random orders.

    Raises:
        InputError: a score has another number of layers.
    """
    found = {kind: _beside(scores, truth, seed) for kind, truth in truths.items()}
    alone = [each.p for rows in found.values() for each in rows if each.p is not None]
    adjusted = iter(holm(alone))

    def judged(agreement: Agreement) -> Agreement:
        if agreement.p is None:
            return agreement
        p = next(adjusted)
        return agreement.model_copy(update={"p": p, "by_chance": p >= SIGNIFICANCE})

    return {
        kind: sorted(map(judged, rows), key=lambda a: -abs(a.spearman or 0.0))
        for kind, rows in found.items()
    }


def _beside(scores: Mapping[str, ArrayLike], truth: GroundTruth, seed: int) -> list[Agreement]:
    """Each score beside one ground truth; p is how often a random order correlates as strongly."""
    costs = truth.matrix
    layers, chunks = costs.shape
    draws = np.random.default_rng(seed).integers(0, chunks, (RESAMPLES, chunks))
    resampled = np.stack([costs[:, own].mean(1) for own in draws])  # (resamples, layers)
    # The same score in random order of the layers is the same costs in random order.
    shuffled = np.random.default_rng(seed).permuted(np.tile(costs.mean(1), (ORDERS, 1)), axis=1)
    found = []
    for name, values in scores.items():
        vector = check_scores(values, name=f"scores {name}")
        if len(vector) != layers:
            raise InputError(
                f"{name} has {len(vector)} scores, and the ground truth {layers} layers; expected "
                "one score a layer of the same model"
            )
        value = low = high = p = None
        if np.ptp(vector) > 0:
            value = float(_correlations(vector, costs.mean(1)[None])[0])
            # With one text alone all draws are the same, which does not make it certain.
            low, high = -1.0, 1.0
            if chunks > 1:
                low, high = np.quantile(_correlations(vector, resampled), [0.025, 0.975]).tolist()
            as_strong = abs(_correlations(vector, shuffled)) >= abs(value) - ROUNDING
            p = float(1 + as_strong.sum()) / (1 + ORDERS)
        found.append(
            Agreement(name=name, truth=truth.kind, spearman=value, low=low, high=high, p=p)
        )
    return found


def advice(found: Sequence[Agreement]) -> str:
    """Which score to use, in words, or that none is better than uniform.

    Args:
        found: at least one, all beside one ground truth, the strongest correlation first.
    """
    what, budget = "the cost of pruning a layer", ""
    judge = "Measure the perplexity of its plan beside the uniform one before you trust it."
    otherwise = "Use the uniform plan, or one made at the operating point."
    if found[0].truth == "capacity":
        what, budget = "what adapters in a layer alone gain", " for experts or ranks"
        judge = "Fine-tune with its plan and with the uniform one before you trust it."
        otherwise = "Use the uniform plan of experts or ranks."
    best = next((each for each in found if each.orientation is not None), None)
    if best is None:
        return (
            f"No better than uniform: the interval of every score's correlation with {what} "
            "holds 0, or the score in random order of the layers correlates as strongly. "
            f"{otherwise}"
        )
    return (
        f"Use {best.name} with orientation {best.orientation}{budget}: its correlation with "
        f"{what} is {best.spearman:+.2f} ({best.low:+.2f} to {best.high:+.2f}). {judge}"
    )


def _correlations(vector: FloatArray, resampled: FloatArray) -> FloatArray:
    """(resamples,) Spearman's correlation of a vector with each row; 0 with a constant row."""
    ranks = rankdata(resampled, axis=1)
    own = rankdata(vector)
    ranks -= ranks.mean(1, keepdims=True)
    own = own - own.mean()
    norms = np.linalg.norm(ranks, axis=1) * np.linalg.norm(own)
    return np.asarray((ranks @ own / np.where(norms > 0, norms, 1.0)).clip(-1, 1))
