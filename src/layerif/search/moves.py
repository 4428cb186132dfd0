"""Numbers of zeros, and small moves of them between projections that keep their sum exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerif.search.planning import Units

# Moves of one offspring: the smaller of two draws from 1 to this, so that most make one or two.
MOST_MOVES = 3
# Draws of a pair of projections, before a move that no pair allows is given up.
ATTEMPTS = 100

Counts = NDArray[np.int64]


def initial_counts(units: Units) -> Counts:
    """(projections,) int64 zeros of each under the uniform plan, together exactly round(S N).

    By the largest remainders, so no projection is off by one or more.
    """
    asked = units.total * units.sizes
    counts = np.floor(asked).astype(np.int64)
    missing = round(units.total * float(units.sizes.sum())) - int(counts.sum())
    order = np.argsort(counts - asked, kind="stable")
    counts[order[:missing]] += 1
    return counts


def mutated(
    counts: Counts, units: Units, step: float, generator: np.random.Generator
) -> Counts | None:
    """A copy with a few moves of zeros from one projection to another; None where none is possible.

    Args:
        counts: (projections,) zeros of each.
        units: sizes and bounds.
        step: zeros of a move, as a fraction of the smaller projection.
        generator: of the draws.
    """
    changed = counts.copy()
    lowest = np.ceil(units.low * units.sizes - 0.5)
    highest = np.floor(units.high * units.sizes + 0.5)
    moves = int(generator.integers(1, MOST_MOVES + 1, size=2).min())
    for _ in range(moves if len(counts) > 1 else 0):
        for _ in range(ATTEMPTS):
            source, to = generator.choice(len(counts), size=2, replace=False)
            zeros = max(1, round(step * float(min(units.sizes[source], units.sizes[to]))))
            if changed[source] - zeros >= lowest[source] and changed[to] + zeros <= highest[to]:
                changed[source] -= zeros
                changed[to] += zeros
                break
    return None if np.array_equal(changed, counts) else changed
