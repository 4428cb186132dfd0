"""Linear datamodeling score, reliability, and their intervals: what benchmarks/lds.py reports."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from layerif.core.choices import Aggregation
from layerif.plans.maps.scores import aggregate

FloatArray = NDArray[np.float64]

SPLITS = 50
RESAMPLES = 2000


class Interval(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def lds(
    values: FloatArray,
    subsets: NDArray[np.intp],
    losses: FloatArray,
    reference: FloatArray | None = None,
) -> Interval:
    """The score of (samples,) values, less that of a reference on the same subsets.

    The interval is the percentile bootstrap's, over subsets.
    """
    drawn = np.random.default_rng(0).integers(len(losses), size=(RESAMPLES, len(losses)))

    def both(of: FloatArray) -> tuple[FloatArray, FloatArray]:
        predicted = of[subsets].sum(1)
        return spearman(predicted, -losses), spearman(predicted[drawn], -losses[drawn])

    value, resampled = both(values)
    if reference is not None:
        less, other = both(reference)
        value, resampled = value - less, resampled - other
    return Interval(float(value), *map(float, np.nanquantile(resampled, (0.025, 0.975))))


def spearman(first: FloatArray, second: FloatArray) -> Any:
    """Rank correlation along the last axis, mean ranks for ties; NaN where values are constant."""
    a, b = (rankdata(values, axis=-1) for values in (first, second))
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def reliability(influence: FloatArray, how: Aggregation) -> float:
    """Mean over random splits of the samples in two."""
    samples = influence.shape[1]
    generator = np.random.default_rng(0)
    found = []
    for _ in range(SPLITS):
        order = generator.permutation(samples)
        halves = order[: samples // 2], order[samples // 2 :]
        found.append(spearman(*(aggregate(influence[:, half], how) for half in halves)))
    return float(np.mean(found))
