"""What a sweep over dampings says: layer scores at each, and how far their ranking agrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerif.artifacts import DampingSweep
from layerif.core.choices import Aggregation
from layerif.errors import InputError
from layerif.influence.estimators.base import Solution
from layerif.influence.options import SolveOptions
from layerif.plans.maps.scores import aggregate, check_scores


def swept(
    options: SolveOptions,
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
    residuals = [
        [at_each[places[factor]].residual for at_each in solutions.values()] for factor in factors
    ]
    return DampingSweep(
        dampings=factors,
        scores={how: [row.tolist() for row in rows] for how, rows in scores.items()},
        spearman={how: found["spearman"] for how, found in stability.items()},
        least={how: found["least"] for how, found in stability.items()},
        residuals=[max((r for r in of if r is not None), default=None) for of in residuals],
    )


def rank_stability(factors: Sequence[float], scores: ArrayLike) -> dict[str, Any]:
    """How far the ranking of the layers depends on the damping.

    Args:
        factors: of each damping.
        scores: (dampings, layers) one score a layer at each.

    Returns:
        Plain values: `dampings`, the factors; `spearman`, the rank correlation of the layers'
        scores between each pair of them, None where one of the two does not tell the layers apart;
        `least`, the smallest of those between different dampings, None where there is none.

    Raises:
        InputError: the scores are not one finite vector for each factor.
    """
    from scipy.stats import spearmanr

    rows = [check_scores(row) for row in np.atleast_2d(np.asarray(scores))]
    if len(rows) != len(factors):
        raise InputError(
            f"there are {len(rows)} score vectors for {len(factors)} dampings; expected one "
            "for each"
        )
    constant = [np.ptp(row) == 0 for row in rows]
    table = [
        [
            None if constant[i] or constant[j] else 1.0 if i == j else float(spearmanr(a, b)[0])
            for j, b in enumerate(rows)
        ]
        for i, a in enumerate(rows)
    ]
    pairs = [table[i][j] for i in range(len(rows)) for j in range(i)]
    known = [value for value in pairs if value is not None]
    return {
        "dampings": [float(factor) for factor in factors],
        "spearman": table,
        "least": min(known, default=None),
    }
