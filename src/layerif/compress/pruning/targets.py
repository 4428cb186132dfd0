"""What a plan asks of each projection: a number of zeros, and with N:M a pattern."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerif.artifacts import Plan
from layerif.errors import InputError
from layerif.model.layers import Projection

# Totals that the choice of patterns tells apart; beyond, sizes are rounded to as many units.
RESOLUTION = 100_000
# What lies this near to a whole number is one: ratios such as 1 - 1/3 are not quite exact.
SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Pattern:
    """N of every M neighbouring inputs kept in each output row; written `2:4`."""

    keep: int
    group: int

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"

    @property
    def sparsity(self) -> float:
        return 1 - self.keep / self.group

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """A pattern from its text.

        Raises:
            InputError: it is not a pattern.
        """
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        keep, group = map(int, found.groups()) if found else (0, 0)
        if group < 1 or keep > group:
            raise InputError(
                f"{text!r} is no N:M pattern; write N:M with 0 <= N <= M, as in 2:4, which keeps "
                "two of every four weights along the inputs"
            )
        return cls(keep, group)


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of one projection.

    Attributes:
        zeros: how many of its weights shall be zero.
        pattern: which N:M they form; None where they may lie anywhere.
    """

    zeros: int
    pattern: Pattern | None = None


def targets(projections: Sequence[Projection], plan: Plan, nm: str | None) -> dict[str, Target]:
    """What is asked of every projection, by its canonical name.

    Unstructured: round(sparsity * numel) zeros. With N:M each projection's N is taken from its own
    sparsity, rounded so that the total over all of them comes as near as it can to the plan's, and
    among such roundings the one that leaves the single sparsities nearest.

    Args:
        nm: a pattern such as 2:4, of which only M counts where sparsities differ.

    Raises:
        InputError: `nm` is no pattern, or M does not divide a projection's inputs; or the plan
            names other projections than these, or of other sizes.
    """
    plan.check_projections({p.key: p.numel for p in projections})
    asked = [plan.level_of(p.key) for p in projections]
    if nm is None:
        return {p.key: Target(round(s * p.numel)) for p, s in zip(projections, asked, strict=True)}
    group = check_pattern(projections, nm).group
    sizes = [p.numel // group for p in projections]
    gone = nearest_counts([group * s for s in asked], sizes)
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
        if projection.in_features % pattern.group:
            raise InputError(
                f"{projection.key} has {projection.in_features} inputs, not a multiple of "
                f"{pattern.group}; choose an N:M whose M divides the inputs of every projection"
            )
    return pattern


def nearest_counts(wanted: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Whole numbers next to the wanted ones, with the total nearest to theirs.

    Each is rounded up or down. Of the roundings whose total, weighted by size, comes nearest, that
    with the least sum of size times distance is taken: by dynamic programming over the totals.

    Args:
        wanted: not negative.
        sizes: weight of each in the total, at least 1.
    """
    counts = [math.floor(value + SAME) for value in wanted]
    rests = {i: w - low for i, (w, low) in enumerate(zip(wanted, counts, strict=True))}
    rests = {i: rest for i, rest in rests.items() if rest > SAME}
    if not rests:
        return counts
    unit = max(math.gcd(*(sizes[i] for i in rests)), sum(sizes[i] for i in rests) // RESOLUTION, 1)
    units = {i: max(round(sizes[i] / unit), 1) for i in rests}
    target = math.fsum(rest * sizes[i] for i, rest in rests.items()) / unit
    # cost[t]: least distance of roundings so far whose ups add up to t units.
    cost = np.full(sum(units.values()) + 1, np.inf)
    cost[0] = 0
    ups = {}
    for i, rest in rests.items():
        up = np.full_like(cost, np.inf)
        up[units[i] :] = cost[: -units[i]] + units[i] * (1 - rest)
        down = cost + units[i] * rest
        ups[i] = up < down
        cost = np.minimum(up, down)
    reached = np.flatnonzero(np.isfinite(cost))
    distance = np.round(np.abs(reached - target), 6)
    nearest = reached[distance == distance.min()]
    total = int(nearest[np.argmin(cost[nearest])])
    for i in reversed(rests):
        if ups[i][total]:
            counts[i] += 1
            total -= units[i]
    return counts
