"""What lm-evaluation-harness reports of its tasks, as our measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from layerif.artifacts import Measurement
from layerif.evaluation.figures import accuracy_figure, perplexity_figure

# The first of a task's metrics that can be represented is its figure, these before all others.
_PREFERRED = ("acc", "exact_match")

_NUMBER = (bool, int, float, np.bool_, np.number)

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
            metrics |= _standard_errors(reported, rows)
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
    keys = list(_metrics(reported))
    keys.sort(key=lambda key: key.split(",")[0] not in _PREFERRED)
    for key in keys:
        mine, values = _values(rows, key)
        figure: dict[str, Any] = {
            "name": name,
            "scoring": "harness",
            "details": {"figure": key, **details},
        }
        if _is_mean(values, reported[key]) and set(values) <= {0, 1}:
            # Of rows scored by likelihood, the candidates are the requests.
            if all(_scored(row) and len(row["arguments"]) > 1 for row in mine):
                chances = [1 / len(row["arguments"]) for row in mine]
                figure["details"]["chance"] = float(np.mean(chances))
            return accuracy_figure(map(_item, mine), np.array(values), **figure)
        if _is_perplexity(values, reported[key]):
            likelihoods, counts = np.array(values, dtype=float).T
            figure["details"]["unit"] = f"{key.split('_')[0]}s"
            return perplexity_figure(map(_item, mine), -likelihoods, counts, **figure)
    return None


def _metrics(reported: Row) -> Iterator[str]:
    """The metrics of a task as lm-eval names them: `acc,none`, with what filters the answers."""
    return (key for key in reported if "," in key and "_stderr," not in key)


def _values(rows: Sequence[Row], key: str) -> tuple[list[Row], list[Any]]:
    """The rows that a metric was read off, in the order of the data, and its values."""
    metric, _, filtered = key.partition(",")
    mine = [row for row in rows if row["filter"] == filtered and metric in row]
    mine.sort(key=lambda row: row["doc_id"])
    return mine, [row[metric] for row in mine]


def _standard_errors(reported: Row, rows: Sequence[Row]) -> dict[str, float]:
    """The standard errors of the metrics that are means, by lm-eval's formula and names.

    lm-eval is run without any: for other metrics it would resample, in processes of its own.
    """
    errors = {}
    for key in _metrics(reported):
        _, values = _values(rows, key)
        if len(values) > 1 and _is_mean(values, reported[key]):
            metric, _, filtered = key.partition(",")
            error = np.std(values, ddof=1) / math.sqrt(len(values))
            errors[f"{metric}_stderr,{filtered}"] = float(error)
    return errors


def _is_mean(values: Sequence[Any], figure: Any) -> bool:
    return bool(
        values
        and all(isinstance(value, _NUMBER) for value in [*values, figure])
        and math.isclose(float(np.mean(values)), figure, abs_tol=1e-9)
    )


def _is_perplexity(values: Sequence[Any], figure: Any) -> bool:
    """Whether a figure is exp(- sum / sum) of pairs of a log-likelihood and a count."""
    pairs = all(
        isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, _NUMBER) for n in value)
        for value in values
    )
    known = bool(values) and isinstance(figure, _NUMBER)
    if not (known and pairs and all(count > 0 for _, count in values)):
        return False
    likelihoods, counts = np.array(values, dtype=float).T
    return math.isclose(math.exp(-likelihoods.sum() / counts.sum()), figure)


def _scored(row: Row) -> bool:
    """Whether all answers are log-likelihoods (with whether they are the greedy text)."""
    return all(isinstance(answer, tuple) for answers in row["resps"] for answer in answers)


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
