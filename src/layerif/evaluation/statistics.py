"""What figures are worth: intervals, paired tests and scores of two classes, from numbers alone.

Sources: Wilson (JASA 22, 1927); McNemar (Psychometrika 12, 1947), in its exact form; Efron and
Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16; Davison and Hinkley,
Bootstrap Methods and their Application (1997), for the + 1 in p; Satterthwaite (Biometrics Bull.
2, 1946), for the variance of crossed samples; Holm (Scand. J. Statist. 6, 1979); Matthews (Biochim.
Biophys. Acta 405, 1975).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from layerif.errors import InputError

RESAMPLES = 10_000
_LEVELS = (0.025, 0.975)
_DRAWN_AT_ONCE = 2**20  # indices; bounds the memory whatever the number of items


class PairedDifference(NamedTuple):
    """`value` minus `baseline_value`, of the same items, with its 95 % interval and two-sided p.

    `low` and `high` are None where one item alone leaves nothing to resample.
    """

    value: float
    baseline_value: float
    difference: float
    low: float | None
    high: float | None
    p: float


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of the proportion `hits` / `count`."""
    low, high = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def perplexity_interval(
    nats: ArrayLike, tokens: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of exp(sum nats / sum tokens), items resampled whole.

    Tokens of one text depend on each other, chunks of it much less: so the chunk is the unit.

    Args:
        nats: (items,) summed negative log-likelihood of each chunk or row.
        tokens: (items,) scored tokens of each.

    Returns:
        The interval; None for a single item, which says nothing of the spread.

    Raises:
        InputError: there is no item, or not as many `tokens`.
    """
    sums, counts = _aligned(nats, tokens)
    if len(counts) == 1:
        return None
    means = _resampled_means(sums[None], counts, resamples, seed)[0]
    low, high = np.exp(np.quantile(means, _LEVELS))
    return float(low), float(high)


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    counts: ArrayLike | None = None,
    *,
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Difference of two means over the same items, both resampled together.

    p inverts the percentile interval: twice the share of resampled differences on the far side of
    0, with 1 added above and below, so that it is never 0. Nor is it below 2^(1 - k), where k items
    differ: all that an exact test of k signs could tell, and what a bootstrap of few items forgets.

    Args:
        first, second: (items,) sums over each item.
        counts: (items,) what each sum is over, e.g. tokens of a chunk; None for 1 each.
        transform: increasing function of the means, e.g. `np.exp` for perplexities.

    Raises:
        InputError: there is no item, or the arguments have different numbers of them.
    """
    ones = np.ones(np.shape(first)) if counts is None else counts
    one, two, weights = _aligned(first, second, ones)
    sums = np.stack([one, two])
    values = transform(sums.sum(1) / weights.sum())
    difference = float(values[0] - values[1])
    floor = 2.0 ** (1 - int(np.count_nonzero(one - two)))
    if len(weights) == 1:
        return PairedDifference(float(values[0]), float(values[1]), difference, None, None, 1.0)
    resampled = transform(_resampled_means(sums, weights, resamples, seed))
    differences = resampled[0] - resampled[1]
    low, high = np.quantile(differences, _LEVELS)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, max(floor, 2 * (int(tail) + 1) / (resamples + 1)))
    return PairedDifference(
        float(values[0]), float(values[1]), difference, float(low), float(high), p
    )


def crossed_t(first: ArrayLike, second: ArrayLike) -> PairedDifference:
    """Difference of two means over the same seeds and items, as a sample of both.

    Training with another seed gives another model, and all of its items move with it: to count the
    items alone would call that difference certain. The differences d (seeds S, items I) are taken
    as mu + seed + item + rest, all random, and from the mean squares of a two-way layout

        variance of the mean = (MS_seed + MS_item - MS_rest) / (S I)

    which is unbiased for any S of at least 2, where resampling few seeds is too small by 1 / S. The
    interval and p are Student's with min(S, I) - 1 degrees of freedom: Satterthwaite's, which are
    themselves estimated, cover too seldom with two or three seeds. p is not below 2^(1 - k), where
    k seeds or k items differ: an exact test of k signs could not tell more.

    Args:
        first, second: (seeds, items) one figure of each item under each seed.

    Returns:
        The difference; without an interval, and with p = 1, from a single seed or item.

    Raises:
        InputError: there is no item, or the two have not one shape.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 2 or not one.size:
        raise InputError(
            "a comparison over seeds and items needs (seeds, items) figures, the same on both "
            f"sides; these have shapes {one.shape} and {two.shape}"
        )
    differences = one - two
    seeds, items = differences.shape
    mean = float(differences.mean())
    sides = float(one.mean()), float(two.mean())
    if min(seeds, items) == 1:
        return PairedDifference(*sides, mean, None, None, 1.0)
    of_seeds, of_items = differences.mean(1) - mean, differences.mean(0) - mean
    rest = differences - mean - of_seeds[:, None] - of_items[None]
    seed_square = items * float((of_seeds**2).sum()) / (seeds - 1)
    item_square = seeds * float((of_items**2).sum()) / (items - 1)
    rest_square = float((rest**2).sum()) / ((seeds - 1) * (items - 1))
    # By chance the sum may fall below either of the two, which it is not to.
    total = max(seed_square + item_square - rest_square, seed_square, item_square)
    differing = min(np.count_nonzero(differences.any(axis)) for axis in (0, 1))
    floor = 2.0 ** (1 - int(differing))
    if total <= 0:  # every item of every seed differs by the same
        return PairedDifference(*sides, mean, mean, mean, min(1.0, floor))
    student = stats.t(min(seeds, items) - 1)
    error = math.sqrt(total / differences.size)
    reach = float(student.ppf(_LEVELS[1])) * error
    p = min(1.0, max(floor, 2 * float(student.sf(abs(mean) / error))))
    return PairedDifference(*sides, mean, mean - reach, mean + reach, p)


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p that two models are right equally often, by the rows just one of them gets right.

    Exact: twice the binomial tail of the smaller side, at most 1; 1 where no row tells them apart.

    Args:
        first, second: (rows,) whether each model is right.

    Raises:
        InputError: there is no row, or the two have different numbers of them.
    """
    one, two = (side.astype(bool) for side in _aligned(first, second))
    ahead, behind = int((one & ~two).sum()), int((two & ~one).sum())
    told = ahead + behind
    return float(stats.binomtest(min(ahead, behind), told).pvalue) if told else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several, in the order given.

    Below 0.05 afterwards, the chance of even one false finding among them is at most 5 %.
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]


def matthews(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Matthews correlation of two classes, -1 to 1; 0 where either side is all of one class.

    Args:
        predictions, labels: (rows,) true for the positive class.

    Raises:
        InputError: there is no row, or the two have different numbers of them.
    """
    said, true = (side != 0 for side in _aligned(predictions, labels))
    return float(np.corrcoef(said, true)[0, 1]) if said.std() and true.std() else 0.0


def f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Harmonic mean of precision and recall of the positive class; 0 where nothing is positive.

    Args:
        predictions, labels: (rows,) true for the positive class.

    Raises:
        InputError: there is no row, or the two have different numbers of them.
    """
    said, true = (side != 0 for side in _aligned(predictions, labels))
    positive = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / positive if positive else 0.0


def _aligned(*sides: ArrayLike) -> list[np.ndarray]:
    """Each side as (items,) float64, all of one length above 0."""
    arrays = [np.asarray(side, dtype=np.float64) for side in sides]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 or arrays[0].ndim != 1 or not arrays[0].size:
        raise InputError(
            "statistics over items need the same number of them on every side, at least one; "
            f"these have shapes {', '.join(str(array.shape) for array in arrays)}"
        )
    return arrays


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(sides, resamples) sum over sum, of `sums` (sides, items) and `counts` (items,).

    `scipy.stats.bootstrap` asks for as many lines, and rounds sums in another order.
    """
    generator = np.random.default_rng(seed)
    items = len(counts)
    block = max(1, _DRAWN_AT_ONCE // items)
    means = np.empty((len(sums), resamples))
    for start in range(0, resamples, block):
        drawn = generator.integers(items, size=(min(block, resamples - start), items))
        means[:, start : start + block] = sums[:, drawn].sum(-1) / counts[drawn].sum(-1)
    return means
