"""What lm-evaluation-harness reports, as measurements with outcomes item by item."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from layerif.artifacts import Measurement
from layerif.evaluation.comparison import outcomes_of
from layerif.evaluation.statistics import perplexity_interval, wilson_interval

# The first of a task's metrics that can be represented is its figure, these before all others.
_PREFERRED = ("acc", "exact_match")

Row = Mapping[str, Any]


def measurements_of(evaluated: Mapping[str, Any]) -> tuple[list[Measurement], dict[str, Any]]:
    """A measurement of each task, and what lm-eval reports beside: groups, and tasks without one.

    An accuracy is a metric that is 0 or 1 for each row and their mean for the task; a perplexity is
    one that is exp(- sum of log-likelihoods / sum of words or bytes). A task that has neither (a
    BLEU, an F1) has no measurement; its figures are returned as lm-eval gives them.
    """
    found: list[Measurement] = []
    rest: dict[str, Any] = {}
    for name, reported in evaluated["results"].items():
        metrics = {key: plain(value) for key, value in reported.items() if "," in key}
        rows = evaluated["samples"].get(name)
        measurement = None
        if rows is not None:
            details = {
                "shots": evaluated["n-shot"][name],
                "task_version": plain(evaluated["versions"][name]),
                "metrics": metrics,
            }
            measurement = _measurement(name, reported, rows, details)
        if measurement is None:
            rest[name] = metrics
        else:
            found.append(measurement)
    return found, rest


def _measurement(
    name: str, reported: Row, rows: Sequence[Row], details: dict[str, Any]
) -> Measurement | None:
    keys = [key for key in reported if "," in key and "_stderr," not in key]
    keys.sort(key=lambda key: key.split(",")[0] not in _PREFERRED)
    for key in keys:
        metric, _, filtered = key.partition(",")
        mine = [row for row in rows if row["filter"] == filtered and metric in row]
        mine.sort(key=lambda row: row["doc_id"])
        values = [row[metric] for row in mine]
        figure = {"name": name, "scoring": "harness", "details": {"figure": key, **details}}
        if _is_mean_of_hits(values, reported[key]):
            return _accuracy(figure, mine, values)
        if _is_perplexity(values, reported[key]):
            return _perplexity(figure, mine, values, metric)
    return None


def _is_mean_of_hits(values: Sequence[Any], figure: Any) -> bool:
    if not values or any(np.ndim(value) or value not in (0, 1) for value in values):
        return False
    return math.isclose(float(np.mean(values)), figure, abs_tol=1e-9)


def _accuracy(figure: dict[str, Any], rows: Sequence[Row], hits: Sequence[Any]) -> Measurement:
    low, high = wilson_interval(int(sum(hits)), len(hits))
    # Of rows scored by likelihood, the candidates are the requests.
    if all(_scored(row) and len(row["arguments"]) > 1 for row in rows):
        figure["details"]["chance"] = float(np.mean([1 / len(row["arguments"]) for row in rows]))
    return Measurement(
        **figure,
        metric="accuracy",
        value=float(np.mean(hits)),
        low=low,
        high=high,
        count=len(hits),
        outcomes=outcomes_of(map(_item, rows), correct=np.array(hits)),
    )


def _scored(row: Row) -> bool:
    """Whether all answers are log-likelihoods (with whether they are the greedy text)."""
    return all(isinstance(answer, tuple) for answers in row["resps"] for answer in answers)


def _is_perplexity(values: Sequence[Any], figure: Any) -> bool:
    if not values or any(np.shape(value) != (2,) for value in values):
        return False
    likelihoods, counts = np.array(values, dtype=float).T
    return bool(
        (counts > 0).all() and math.isclose(math.exp(-likelihoods.sum() / counts.sum()), figure)
    )


def _perplexity(
    figure: dict[str, Any], rows: Sequence[Row], values: Sequence[Any], metric: str
) -> Measurement:
    likelihoods, counts = np.array(values, dtype=float).T
    low, high = perplexity_interval(-likelihoods, counts) or (None, None)
    figure["details"]["unit"] = f"{metric.removesuffix('_perplexity')}s"
    return Measurement(
        **figure,
        metric="perplexity",
        value=math.exp(-likelihoods.sum() / counts.sum()),
        low=low,
        high=high,
        count=int(counts.sum()),
        outcomes=outcomes_of(map(_item, rows), -likelihoods, counts),
    )


def _item(row: Row) -> list[Any]:
    """What tells a row apart: the texts that the model was given, and the right answer."""
    texts = [[part for part in request if isinstance(part, str)] for request in row["arguments"]]
    return [texts, str(row["target"])]


def plain(value: Any) -> Any:
    """A figure as a JSON value; one that is not finite as text."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)
