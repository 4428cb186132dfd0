"""Metrics by name: those of this package, and any that a user registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layerif.errors import InputError
from layerif.metrics.adapter_gain import adapter_gain
from layerif.metrics.base import Metric, MetricFunction
from layerif.metrics.block_influence import block_influence
from layerif.metrics.controls import random, shuffled, uniform
from layerif.metrics.dlp import dlp
from layerif.metrics.marginal import marginal
from layerif.metrics.outlier_ratio import OUTLIER_MULTIPLE, outlier_ratio
from layerif.metrics.pl_alpha import pl_alpha

_METRICS = {
    "pl_alpha": Metric(pl_alpha, {"compat": "corrected"}),
    "outlier_ratio": Metric(outlier_ratio, {"multiple": OUTLIER_MULTIPLE}, reads_text=True),
    "dlp": Metric(dlp, {"statistic": "median"}, reads_text=True),
    "block_influence": Metric(block_influence, reads_text=True, reads_weights=False),
    "marginal": Metric(marginal, {"sparsity": 0.5, "delta": 0.05}, reads_text=True),
    "adapter_gain": Metric(
        adapter_gain,
        {"rank": 8, "alpha": 16.0},
        reads_text=True,
        takes_samples=True,
        reads_weights=False,
        seeded=True,
    ),
    "uniform": Metric(uniform, reads_weights=False),
    "random": Metric(random, reads_weights=False, seeded=True),
    "shuffled": Metric(shuffled, reads_weights=False, seeded=True, of_another=True),
}


def register_metric(
    name: str,
    function: MetricFunction,
    *,
    options: Mapping[str, Any] | None = None,
    reads_text: bool = False,
) -> None:
    """Give a metric a name: `metric_scores(model, name)` then uses it.

    Args:
        name: not taken yet.
        function: of a `Subject` and of the options by keyword; returns `MetricValues`.
        options: the options it takes, and what they are unless given.
        reads_text: whether it calls `subject.visits()`, for which calibration text is needed.

    Raises:
        InputError: the name is taken.
    """
    if name in _METRICS:
        raise InputError(f"there already is a metric {name!r}; choose another name")
    _METRICS[name] = Metric(function, dict(options or {}), reads_text=reads_text)


def find(name: str) -> Metric:
    """The metric of that name.

    Raises:
        InputError: there is none; the message lists those that are.
    """
    if name not in _METRICS:
        raise InputError(f"there is no metric {name!r}; choose one of {', '.join(names())}")
    return _METRICS[name]


def names() -> list[str]:
    """Every metric there is."""
    return list(_METRICS)


def involved(name: str, options: Mapping[str, Any]) -> list[Metric]:
    """The metric, and the one that it makes something of."""
    metric = find(name)
    return [metric, find(options["of"])] if metric.of_another else [metric]


def reads_text(name: str, options: Mapping[str, Any]) -> bool:
    """Whether calibration text is needed for this metric with these (complete) options."""
    return any(metric.reads_text for metric in involved(name, options))


def reads_model(name: str, options: Mapping[str, Any]) -> bool:
    """Whether the model's weights are read or run, and not just its layers counted."""
    return any(metric.reads_weights or metric.reads_text for metric in involved(name, options))


def takes_samples(name: str, options: Mapping[str, Any]) -> bool:
    """Whether samples of a task may take the place of calibration text."""
    return any(metric.takes_samples for metric in involved(name, options))


def is_seeded(name: str, options: Mapping[str, Any]) -> bool:
    """Whether the seed counts for more than the draw of calibration text."""
    return any(metric.seeded for metric in involved(name, options))


def complete_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a metric: those given, and for the others what they are unless given.

    Raises:
        InputError: there is no such metric, it takes no such option, or `of` is missing or names a
            metric that is itself made of another.
    """
    metric = find(name)
    known = dict(metric.options)
    if metric.of_another:
        others = [other for other in names() if not find(other).of_another]
        of = given.get("of")
        if of not in others:
            raise InputError(
                f"{name} is made of another metric's scores; name it by the option `of`, one of "
                f"{', '.join(others)}" + ("" if of is None else f", and not {of!r}")
            )
        known |= {"of": of, **find(of).options}
    unknown = [option for option in given if option not in known]
    if unknown:
        raise InputError(
            f"the metric {name} takes no option {unknown[0]!r}; "
            f"it takes {', '.join(known) or 'none'}"
        )
    return {**known, **given}
