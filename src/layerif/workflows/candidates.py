"""The plans that a comparison of sparsity makes: each way with as many tries as any other.

A way is a metric, a map and a list of values of the map's one parameter, the authors' own value
first; OWL has a parameter of its metric besides, M, which is tried after four values of the map's.
Which of them is taken is decided by the loss on held-out calibration text, never on what the
comparison is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from layerif.artifacts import Allocation, LayerScores, MetricScores
from layerif.core.choices import Orientation, PlanName, SparsityMap
from layerif.errors import InputError
from layerif.plans.allocate import allocate_sparsity
from layerif.plans.maps import DLP_LAMBDA, OWL_LAMBDA

# Of the authors' value, in the order in which they are tried.
FACTORS = (1.0, 2.0, 0.5, 3.0, 1.5, 0.25)
# How many of them come before other values of the metric's parameter.
FIRST = 4
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
        of_metric: options of the metric other than its own, each tried with the usual parameter.
    """

    metric: str | None
    map: SparsityMap
    parameter: str = "epsilon"
    usual: float = EPSILON
    smooth: bool = False
    orientations: tuple[Orientation | None, ...] = (None,)
    of_metric: tuple[dict[str, Any], ...] = ()

    def options(self, tries: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """For each try the options of the metric, and the arguments of `allocate_sparsity`."""
        if self.map == "uniform":
            return [({}, {"map": "uniform"})]
        each = [
            {
                "map": self.map,
                self.parameter: self.usual * factor,
                "smooth": self.smooth,
                "orientation": orientation,
            }
            for factor in FACTORS
            for orientation in self.orientations
        ]
        found: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, own) for own in each]
        found[FIRST:FIRST] = [(own, each[0]) for own in self.of_metric]
        return found[:tries]


# The plan at the operating point is none of these: its rounds are its tries.
WAYS: dict[PlanName, Way] = {
    "uniform": Way(None, "uniform"),
    "layerif": Way(None, "layerif", smooth=True, orientations=("direct", "inverse")),
    "alphapruning": Way("pl_alpha", "layerif"),
    "owl": Way(
        "outlier_ratio", "owl", "lam", OWL_LAMBDA, of_metric=({"multiple": 3.0}, {"multiple": 7.0})
    ),
    "dlp": Way("dlp", "dlp", "lam", DLP_LAMBDA),
    "random": Way("random", "layerif"),
}


def check_tries(names: Sequence[PlanName], tries: int) -> None:
    """Refuse more tries than one of the plans has values for: none may have fewer than another.

    Raises:
        InputError: names the plan, and how many it has.
    """
    for name in names:
        if name not in WAYS or WAYS[name].map == "uniform":
            continue
        most = len(WAYS[name].options(tries))
        if most < tries:
            raise InputError(f"the plan {name} has {most} values to try, not {tries}")


def plans_of(
    name: PlanName,
    scores: Callable[[dict[str, Any]], LayerScores | MetricScores],
    sparsity: float,
    tries: int,
) -> list[Allocation]:
    """The plans of one way, the authors' own first.

    Args:
        scores: makes the scores, from options of the metric.
    """
    return [
        allocate_sparsity(scores(of_metric), sparsity, **of_map)
        for of_metric, of_map in WAYS[name].options(tries)
    ]
