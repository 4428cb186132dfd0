"""The plans that a comparison of sparsity makes: each way with as many tries as any other.

A way is a metric, a map and a list of values of the map's one parameter, the authors' own value
first. Which of them is taken is decided by the loss on held-out calibration text, never on what
the comparison is judged by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from layerif.allocate import allocate_sparsity
from layerif.artifacts import Allocation, LayerScores, MetricScores
from layerif.budgets import DLP_LAMBDA, OWL_LAMBDA
from layerif.choices import Orientation, PlanName, SparsityMap

# Of the authors' value, in the order in which they are tried.
FACTORS = (1.0, 2.0, 0.5, 3.0, 1.5, 4.0)
# AlphaPruning's and LayerIF's.
EPSILON = 0.1


@dataclass(frozen=True)
class Way:
    """How one kind of plan is made.

    Attributes:
        metric: of the scores; None for influence, and where none are needed.
        map: from scores to sparsities.
        parameter: of the map, that is tuned.
        usual: its authors' value.
        smooth: whether scores are smoothed over neighbouring layers.
        orientations: tried in turn; None is the map's own.
    """

    metric: str | None
    map: SparsityMap
    parameter: str = "epsilon"
    usual: float = EPSILON
    smooth: bool = False
    orientations: tuple[Orientation | None, ...] = (None,)

    def options(self, tries: int) -> list[dict[str, Any]]:
        """Keyword arguments of `allocate_sparsity`, one for each try."""
        if self.map == "uniform":
            return [{"map": "uniform"}]
        each = len(self.orientations)
        return [
            {
                "map": self.map,
                self.parameter: self.usual * FACTORS[number // each],
                "smooth": self.smooth,
                "orientation": self.orientations[number % each],
            }
            for number in range(min(tries, len(FACTORS) * each))
        ]


# The plan at the operating point is none of these: its rounds are its tries.
WAYS: dict[PlanName, Way] = {
    "uniform": Way(None, "uniform"),
    "layerif": Way(None, "layerif", smooth=True, orientations=("direct", "inverse")),
    "alphapruning": Way("pl_alpha", "layerif"),
    "owl": Way("outlier_ratio", "owl", "lam", OWL_LAMBDA),
    "dlp": Way("dlp", "dlp", "lam", DLP_LAMBDA),
    "random": Way("random", "layerif"),
}


def plans_of(
    name: PlanName, scores: LayerScores | MetricScores, sparsity: float, tries: int
) -> list[Allocation]:
    """The plans of one way, the authors' own first."""
    return [allocate_sparsity(scores, sparsity, **options) for options in WAYS[name].options(tries)]
