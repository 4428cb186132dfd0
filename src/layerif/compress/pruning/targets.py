"""What a plan asks of each projection: a number of zeros, and with N:M a pattern."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layerif.artifacts import Plan
from layerif.compress.pruning.base import Target
from layerif.compress.pruning.pattern import Pattern
from layerif.errors import InputError
from layerif.model.layers import Projection

# Totals that the choice of patterns tells apart; beyond, sizes are rounded to as many units.
RESOLUTION = 100_000
# A pattern's sparsity is a ratio of small numbers: what is further off was meant otherwise.
SAME = 1e-6


def targets(projections: Sequence[Projection], plan: Plan, nm: str | None) -> dict[str, Target]:
    """What is asked of every projection, by its canonical name.

    Unstructured: round(sparsity * numel) zeros. With N:M each projection's N is taken from its own
    sparsity, rounded so that the total over all of them comes as near as it can to the plan's, and
    among such roundings the one that leaves the single sparsities nearest.

    Args:
        nm: a pattern such as 2:4, of which only M counts where sparsities differ.

    Raises:
        InputError: `nm` is no pattern, or M does not divide a projection's inputs.
    """
    asked = {p.key: plan.sparsity_of(p.key) for p in projections}
    if nm is None:
        return {p.key: Target(round(asked[p.key] * p.numel)) for p in projections}
    group = check_pattern(projections, nm).group
    sizes = [p.numel // group for p in projections]
    gone = nearest_counts([group * asked[p.key] for p in projections], sizes)
    return {
        p.key: Target(count * size, Pattern(group - count, group))
        for p, size, count in zip(projections, sizes, gone, strict=True)
    }


def check_pattern(projections: Sequence[Projection], nm: str) -> Pattern:
    """The pattern of a text, where it fits all projections; a skeleton's will do.

    Raises:
        InputError: it is no pattern, or M does not divide a projection's inputs; names it.
    """
    pattern = Pattern.parse(nm)
    for projection in projections:
        pattern.check_fits(projection.key, projection.in_features)
    return pattern


def check_sparsity(sparsity: float, nm: str | None) -> None:
    """Refuse a sparsity for all that is none, or that a pattern given beside it contradicts.

    Raises:
        InputError: it is, or does.
    """
    if not 0 <= sparsity <= 1:
        raise InputError(f"sparsity must be within 0 to 1, not {sparsity}")
    if nm is not None and abs(Pattern.parse(nm).sparsity - sparsity) > SAME:
        raise InputError(
            f"the pattern {nm} makes {Pattern.parse(nm).sparsity:.4g} of the weights zero, and a "
            f"sparsity of {sparsity:g} was asked for; leave one of the two out"
        )


def nearest_counts(wanted: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Whole numbers next to the wanted ones, with the total nearest to theirs.

    Each is rounded up or down. Of the roundings whose total, weighted by size, comes nearest, that
    with the least sum of size times distance is taken: by dynamic programming over the totals.

    Args:
        wanted: not negative.
        sizes: weight of each in the total, at least 1.
    """
    # What lies this near to a whole number is one: ratios such as 1 - 1/3 are not quite exact.
    floors = [math.floor(value + SAME) for value in wanted]
    rests = [max(value - low, 0.0) for value, low in zip(wanted, floors, strict=True)]
    rests = [rest if rest > SAME else 0.0 for rest in rests]
    open_ = [i for i, rest in enumerate(rests) if rest > 0]
    if not open_:
        return floors
    unit = max(math.gcd(*(sizes[i] for i in open_)), sum(sizes[i] for i in open_) // RESOLUTION, 1)
    units = [max(round(sizes[i] / unit), 1) for i in open_]
    target = math.fsum(rests[i] * sizes[i] for i in open_) / unit
    # cost[t]: least distance of roundings so far whose ups add up to t units.
    cost = np.full(sum(units) + 1, np.inf)
    cost[0] = 0
    ups = np.zeros((len(open_), len(cost)), dtype=bool)
    for row, (i, own) in enumerate(zip(open_, units, strict=True)):
        up = np.full_like(cost, np.inf)
        up[own:] = cost[:-own] + own * (1 - rests[i])
        down = cost + own * rests[i]
        ups[row] = up < down
        cost = np.minimum(up, down)
    reached = np.flatnonzero(np.isfinite(cost))
    distance = np.round(np.abs(reached - target), 6)
    nearest = reached[distance == distance.min()]
    total = int(nearest[np.argmin(cost[nearest])])
    counts = list(floors)
    for row in reversed(range(len(open_))):
        if ups[row, total]:
            counts[open_[row]] += 1
            total -= units[row]
    return counts
