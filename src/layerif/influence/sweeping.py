"""What a sweep over dampings says: layer scores at each, and how far their ranking agrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from layerif.artifacts import DampingSweep
from layerif.core.choices import Aggregation
from layerif.influence.estimators.base import EstimatorOptions, Solution
from layerif.influence.estimators.sweep import rank_stability
from layerif.plans.maps.scores import aggregate


def swept(
    options: EstimatorOptions,
    solutions: Mapping[str, Sequence[Solution]],
    by_layer: Callable[[int], NDArray[np.float64]],
) -> DampingSweep:
    """The sweep of a run, from the solutions that it has at each damping.

    A damping that is given as a number, and not as a factor of the rule, is left out.

    Args:
        options: whose `dampings` were solved for.
        solutions: of each block by its name, one a damping.
        by_layer: (layers, samples) influence at the damping of that place.
    """
    places: dict[float, int] = {}
    for place, damping in enumerate(options.dampings):
        if damping.value is None:
            places.setdefault(damping.factor, place)
    factors = sorted(places)
    influences = [by_layer(places[factor]) for factor in factors]
    scores = {how: [aggregate(i, how) for i in influences] for how in get_args(Aggregation)}
    stability = {how: rank_stability(factors, rows) for how, rows in scores.items()}
    return DampingSweep(
        dampings=factors,
        scores={how: [row.tolist() for row in rows] for how, rows in scores.items()},
        spearman={how: found["spearman"] for how, found in stability.items()},
        least={how: found["least"] for how, found in stability.items()},
        residuals=[_largest_residual(solutions, places[factor]) for factor in factors],
    )


def _largest_residual(solutions: Mapping[str, Sequence[Solution]], place: int) -> float | None:
    found = [at_each[place].residual for at_each in solutions.values()]
    return max((residual for residual in found if residual is not None), default=None)
