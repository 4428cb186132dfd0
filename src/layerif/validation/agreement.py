"""How well scores foretell a ground truth: rank correlation, with an interval over the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, spearmanr

from layerif.artifacts import Agreement, GroundTruth
from layerif.budgets.scores import check_scores
from layerif.errors import InputError

FloatArray = NDArray[np.float64]
RESAMPLES = 2000


def agreements(
    scores: Mapping[str, ArrayLike], truth: GroundTruth, *, seed: int = 0
) -> list[Agreement]:
    """Each score beside the ground truth, the strongest correlation first.

    Args:
        scores: (layers,) each, by name.
        truth: the costs.
        seed: of the bootstrap.

    Raises:
        InputError: a score has another number of layers.
    """
    costs = truth.matrix
    layers, chunks = costs.shape
    draws = np.random.default_rng(seed).integers(0, chunks, (RESAMPLES, chunks))
    resampled = np.stack([costs[:, own].mean(1) for own in draws])  # (resamples, layers)
    found = []
    for name, values in scores.items():
        vector = check_scores(values, name=f"scores {name}")
        if len(vector) != layers:
            raise InputError(
                f"{name} has {len(vector)} scores, and the ground truth {layers} layers; right "
                "would be one score a layer of the same model"
            )
        if np.ptp(vector) == 0:
            found.append(Agreement(name=name, spearman=None, low=None, high=None))
            continue
        value = float(spearmanr(vector, costs.mean(1))[0])
        low, high = np.quantile(_correlations(vector, resampled), [0.025, 0.975])
        found.append(Agreement(name=name, spearman=value, low=float(low), high=float(high)))
    return sorted(found, key=lambda a: -abs(a.spearman or 0.0))


def advice(found: Sequence[Agreement]) -> str:
    """Which score to use, in words, or that none is better than uniform."""
    sure = [each for each in found if each.orientation is not None]
    if not sure:
        return (
            "No better than uniform: the interval of every score's correlation with the cost holds "
            "0. Use the uniform plan, or one made at the operating point."
        )
    best = sure[0]
    return (
        f"Use {best.name} with --orientation {best.orientation}: its correlation with the cost of "
        f"pruning a layer is {best.spearman:+.2f} ({best.low:+.2f} to {best.high:+.2f}). Measure "
        "the perplexity of its plan beside the uniform one before you trust it."
    )


def _correlations(vector: FloatArray, resampled: FloatArray) -> FloatArray:
    """(resamples,) Spearman's correlation of a vector with each row."""
    ranks = rankdata(resampled, axis=1)
    own = rankdata(vector)
    ranks -= ranks.mean(1, keepdims=True)
    own = own - own.mean()
    norms = np.linalg.norm(ranks, axis=1) * np.linalg.norm(own)
    return np.asarray(ranks @ own / np.where(norms > 0, norms, 1.0))
