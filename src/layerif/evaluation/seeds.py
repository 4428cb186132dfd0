"""Models that were trained with several seeds, compared on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from layerif.artifacts import Comparison, Results
from layerif.artifacts.results import SIGNIFICANCE
from layerif.errors import InputError
from layerif.evaluation.statistics import PairedDifference, crossed_t, holm

Metric = Literal["accuracy", "completion_loss"]


class SeedFigures(NamedTuple):
    """One figure of a task under every seed, row by row.

    Attributes:
        name: of the task.
        values: (seeds, rows).
    """

    name: str
    metric: Metric
    values: np.ndarray

    @property
    def by_seed(self) -> np.ndarray:
        """(seeds,) the figure of each."""
        means: np.ndarray = self.values.mean(1)
        return means


def figures_of(results: Sequence[Results]) -> list[SeedFigures]:
    """Accuracy, where rows have candidates, and the loss of the right completion, of each task.

    The loss is a row's mean nats a token.

    Args:
        results: one a seed, measured on the same rows.

    Raises:
        InputError: they were measured on other rows, or not row by row.
    """
    found = []
    for measurements in zip(*(result.measurements for result in results), strict=True):
        outcomes = [m.outcomes for m in measurements]
        name = measurements[0].name
        if any(o is None or o.items != (outcomes[0] and outcomes[0].items) for o in outcomes):
            raise InputError(
                f"the results on {name} under several seeds are not of the same rows; measure them "
                "again"
            )
        rows = [o for o in outcomes if o is not None]
        if measurements[0].metric == "accuracy":
            correct = np.array([o.correct for o in rows], dtype=np.float64)
            found.append(SeedFigures(name, "accuracy", correct))
        if rows[0].nats:
            losses = np.array([np.divide(o.nats, o.tokens) for o in rows])
            found.append(SeedFigures(name, "completion_loss", losses))
    return found


def compare_seeds(results: Mapping[str, Sequence[Results]], baseline: str) -> list[Comparison]:
    """Every model beside `baseline` under the same seeds, on the same rows.

    Args:
        results: one a seed, of one or more models beside the baseline.

    Raises:
        InputError: the models have not the same seeds, or as `figures_of`.
    """
    base = figures_of(results[baseline])
    found: list[tuple[str, SeedFigures, PairedDifference]] = []
    for name, own in results.items():
        if name == baseline:
            continue
        if len(own) != len(results[baseline]):
            raise InputError(
                f"{name} has results under {len(own)} seeds, and {baseline} under "
                f"{len(results[baseline])}; the same are needed"
            )
        for figures, others in zip(figures_of(own), base, strict=True):
            paired = crossed_t(figures.values, others.values)
            found.append((name, figures, paired))
    adjusted = holm([paired.p for _, _, paired in found])
    return [
        Comparison(
            name=figures.name,
            metric=figures.metric,
            model=name,
            baseline=baseline,
            value=paired.first,
            baseline_value=paired.second,
            difference=paired.difference,
            low=paired.low,
            high=paired.high,
            count=figures.values.shape[1],
            seeds=figures.values.shape[0],
            test="crossed_t",
            p=paired.p,
            p_holm=p_holm,
            inside_noise=p_holm >= SIGNIFICANCE,
        )
        for (name, figures, paired), p_holm in zip(found, adjusted, strict=True)
    ]
