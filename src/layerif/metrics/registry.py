"""Metrics by name: those of this package, and any that a user registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from layerif.core.options import Options, options_class
from layerif.core.registry import Registry
from layerif.errors import InputError
from layerif.plans.named import INFLUENCE

if TYPE_CHECKING:
    from layerif.metrics.base import Metric, MetricFunction

METRICS: Registry[Metric] = Registry.of(
    __package__,
    "metric",
    "pl_alpha outlier_ratio dlp block_influence drop_cost taylor marginal quadratic adapter_gain "
    "controls:uniform controls:random controls:rule_of_thumb controls:shuffled",
)


def register_metric(
    name: str,
    function: MetricFunction,
    *,
    options: type[Options] | Mapping[str, Any] = Options,
    reads_text: bool = False,
) -> None:
    """Give a metric a name: `metric_scores(model, name)` and `layerif metric NAME` then use it.

    Args:
        name: not taken yet.
        function: of a `Subject` and of the options by keyword; returns `MetricValues`.
        options: the class of the options that it takes, or what they are unless given.
        reads_text: whether it calls `subject.visits()`, for which calibration text is needed.

    Raises:
        InputError: the name is taken, or is no single word.
    """
    from layerif.metrics.base import Metric

    if name == INFLUENCE:
        raise InputError(
            f"plans call the scores of influence {name!r}; choose another name for the metric"
        )
    kind = options if isinstance(options, type) else options_class(name, options)
    METRICS.register(name, Metric(function, kind, reads_text=reads_text))


def involved(name: str, options: Mapping[str, Any]) -> list[Metric]:
    """The metric, and the one that it makes something of."""
    metric = METRICS.find(name)
    return [metric, METRICS.find(options["of"])] if metric.of_another else [metric]


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
    """All options of a metric: those given, and for the others their defaults.

    Raises:
        InputError: there is no such metric, it takes no such option, or `of` is missing or names a
            metric that is itself made of another.
    """
    metric = METRICS.find(name)
    if not metric.of_another:
        return metric.options(**given).values()
    others = [each for each in METRICS.names() if not METRICS.find(each).of_another]
    of = given.get("of")
    if of not in others:
        raise InputError(
            f"{name} is made of another metric's scores; name it by the option `of`, one of "
            f"{', '.join(others)}" + ("" if of is None else f", and not {of!r}")
        )
    rest = {option: value for option, value in given.items() if option != "of"}
    return {"of": of, **METRICS.find(of).options(**rest).values()}
