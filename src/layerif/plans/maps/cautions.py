"""What a reader should know of scores and plans before a budget is spent by them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from layerif.core.choices import Aggregation
from layerif.plans.maps.scores import aggregate, check_scores

# Scores whose range is less than this share of the largest are called flat.
FLAT = 0.2
# Below this, more of the variance between layers is noise than is not.
RELIABLE = 0.5
SPLITS = 100
# Each half needs two samples to say anything.
LEAST_SAMPLES = 4
_NAMED = 4


def reliability(influence: ArrayLike, how: Aggregation = "positive", *, seed: int = 0) -> float:
    """Split-half reliability of a profile of layer scores over the training samples, 0 to 1.

    r is Pearson's correlation over layers between the scores of two random halves of the samples,
    the mean over 100 splits; a profile of all samples has 2 r / (1 + r) (Spearman and Brown, Brit.
    J. Psychology 3, 1910): the share of the variance between layers that other samples would show
    too. A negative r counts as 0.

    Args:
        influence: (layers, samples), at least two layers and four samples.
        how: the aggregation.
    """
    matrix = np.asarray(influence, dtype=np.float64)
    samples = matrix.shape[1]
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(SPLITS):
        order = generator.permutation(samples)
        halves = order[: samples // 2], order[samples // 2 :]
        one, two = (aggregate(matrix[:, half], how) for half in halves)
        one, two = one - one.mean(), two - two.mean()
        scale = float(np.linalg.norm(one) * np.linalg.norm(two))
        found.append(float(one @ two) / scale if scale > 0 else 0.0)
    r = max(0.0, float(np.mean(found)))
    return 2 * r / (1 + r)


def flat_scores(scores: ArrayLike) -> str | None:
    """A caution where all scores lie within a fifth of the largest; else None."""
    vector = check_scores(scores)
    largest = float(np.abs(vector).max())
    spread = float(np.ptp(vector)) / largest if largest > 0 else 0.0
    if not 0 < spread < FLAT:
        return None
    return f"the scores of the layers lie within {spread:.0%} of the largest"


def unreliable_scores(influence: ArrayLike, how: Aggregation) -> str | None:
    """A caution where other training samples would rank the layers otherwise; else None."""
    matrix = np.asarray(influence)
    if min(matrix.shape[0] // 2, matrix.shape[1] // LEAST_SAMPLES) < 1:
        return None
    found = reliability(matrix, how)
    if found >= RELIABLE:
        return None
    return (
        f"most of what tells the layers apart is noise of the {matrix.shape[1]} training samples "
        f"(split-half reliability {found:.2f})"
    )


def emptied(names: Sequence[str], sparsities: Sequence[float]) -> str | None:
    """A caution that names the layers or projections that lose every weight; None for none."""
    empty = [name for name, value in zip(names, sparsities, strict=True) if value >= 1]
    if not empty:
        return None
    more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
    return f"sparsity 1 leaves no weight in {', '.join(empty[:_NAMED])}{more}"
