"""One block under several dampings, and what they do to the ranking of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerif.errors import InputError
from layerif.influence.estimators.base import Damping, EstimatorOptions, Solution
from layerif.influence.estimators.block import Block
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.plans.maps.scores import check_scores


def sweep(block: Block, dampings: Sequence[Damping], options: EstimatorOptions) -> list[Solution]:
    """The block's solution at each damping, with what they share worked out once.

    Args:
        block: its gradients and parts.
        dampings: in place of the options' damping.
        options: which estimator, and its other options.
    """
    estimator = ESTIMATORS.find(options.name)
    if not estimator.damped:
        return [estimator.solve(block, options)] * len(dampings)
    if estimator.sweep is not None:
        return estimator.sweep(block, dampings, options)
    return [estimator.solve(block, replace(options, damping=damping)) for damping in dampings]


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
