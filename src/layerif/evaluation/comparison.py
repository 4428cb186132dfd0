"""Models compared in pairs, on the same rows and chunks, or on the same rows and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from layerif.artifacts import Comparison, Measurement, Outcomes, Results
from layerif.artifacts.results import SIGNIFICANCE, Scoring
from layerif.errors import InputError
from layerif.evaluation.statistics import (
    PairedDifference,
    crossed_t,
    holm,
    mcnemar,
    paired_bootstrap,
)

# What a test gives, and the other fields of the comparison.
Tested = tuple[PairedDifference, dict[str, Any]]


def compare(
    results: Mapping[str, Results], baseline: str, *, beside: Sequence[tuple[str, str]] = ()
) -> list[Comparison]:
    """Every model beside `baseline`, in each measurement that both have.

    A task with candidates is compared in accuracy (exact McNemar test) and in the mean loss of the
    right completion, nats per token (paired bootstrap over rows); any other measurement in
    perplexity (paired bootstrap over chunks or rows). The losses are left out where the two models
    cut completions into different tokens. p is adjusted over all that is returned.

    Args:
        results: one or more models beside the baseline, by the names they shall have.
        baseline: one of those names.
        beside: more pairs of those names, model and baseline, that belong to the same family.

    Raises:
        InputError: two results share no measurement, or were not measured on the same items, or a
            file holds no outcomes item by item.
    """
    if baseline not in results or len(results) < 2:
        raise InputError(
            f"to compare with {baseline!r}, give its results and those of at least one other "
            f"model; there are results of {', '.join(results) or 'none'}"
        )
    pairs = [(name, baseline) for name in results if name != baseline]
    pairs += [pair for pair in beside if pair not in pairs]
    found: list[Tested] = []
    for name, other in pairs:
        known = {_key(m): m for m in results[other].measurements}
        shared = [m for m in results[name].measurements if _key(m) in known]
        if not shared:
            raise InputError(
                f"{name} and {other} share no measurement: one has {_names(results[name])}, the "
                f"other {_names(results[other])}"
            )
        for measured in shared:
            one, two = _outcomes(measured, known[_key(measured)], name, other)
            for metric, test, paired in _tests(measured.metric, one, two):
                about = {
                    "name": measured.name,
                    "metric": metric,
                    "scoring": measured.scoring,
                    "model": name,
                    "baseline": other,
                    "count": one.count,
                    "test": test,
                }
                found.append((paired, about))
    return _family(found)


def _family(found: Sequence[Tested]) -> list[Comparison]:
    """Comparisons made together, whose p are adjusted for one another."""
    adjusted = holm([paired.p for paired, _ in found])
    return [
        Comparison(**about, **paired._asdict(), p_holm=p_holm, inside_noise=p_holm >= SIGNIFICANCE)
        for (paired, about), p_holm in zip(found, adjusted, strict=True)
    ]


def _key(measurement: Measurement) -> tuple[str, str, str]:
    """What two measurements must share to be the same figure."""
    return measurement.name, measurement.metric, measurement.scoring


def _keys(result: Results) -> list[tuple[str, str, str]]:
    return [_key(measurement) for measurement in result.measurements]


def _tests(
    metric: str, one: Outcomes, two: Outcomes
) -> Iterator[tuple[str, str, PairedDifference]]:
    """Metric, test and difference of each comparison that outcomes of the same items give."""
    if metric == "perplexity":
        paired = paired_bootstrap(one.nats, two.nats, one.tokens, transform=np.exp)
        yield metric, "paired_bootstrap", paired
        return
    paired = paired_bootstrap(one.correct, two.correct)
    yield metric, "mcnemar", paired._replace(p=mcnemar(one.correct, two.correct))
    if one.tokens and one.tokens == two.tokens:
        paired = paired_bootstrap(*(np.divide(side.nats, side.tokens) for side in (one, two)))
        yield "completion_loss", "paired_bootstrap", paired


def _outcomes(
    first: Measurement, second: Measurement, name: str, baseline: str
) -> tuple[Outcomes, Outcomes]:
    """The outcomes of both, of the same items."""
    one, two = first.outcomes, second.outcomes
    if one is None or two is None:
        raise InputError(
            f"the results of {name if one is None else baseline} on {first.name} hold no outcomes "
            "item by item, which a comparison in pairs needs; measure them again"
        )
    # A perplexity is per token: of other tokens it is another quantity.
    same = one.items == two.items and one.count == two.count
    if not same or (first.metric == "perplexity" and one.tokens != two.tokens):
        raise other_items(name, baseline, first, (one.count, two.count))
    return one, two


def other_items(
    name: str, baseline: str, measured: Measurement, counts: tuple[int, int]
) -> InputError:
    """The error that two results, of so many items each, are not of the same ones."""
    what = "rows" if measured.metric == "accuracy" else "chunks, or other tokens in them"
    return InputError(
        f"{name} and {baseline} cannot be compared in pairs on {measured.name}: one is measured on "
        f"{counts[0]:,} items, the other on {counts[1]:,}, and they are not the same {what}; "
        "measure both with the same data, samples, seed and lengths"
    )


def _names(result: Results) -> str:
    named = (
        f"{m.name} ({m.metric}{'' if m.scoring == 'likelihood' else f' by {m.scoring}'})"
        for m in result.measurements
    )
    return ", ".join(named) or "none"


class SeedFigures(NamedTuple):
    """One figure of a task for models trained with several seeds, row by row.

    Attributes:
        name: of the task.
        scoring: what the figure was read off.
        values: (seeds, rows).
    """

    name: str
    metric: Literal["accuracy", "completion_loss"]
    scoring: Scoring
    values: np.ndarray

    @property
    def key(self) -> tuple[str, str, str]:
        """What two must share to be the same figure."""
        return self.name, self.metric, self.scoring

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
        InputError: they do not have the same measurements, or were measured on different rows, or
            not row by row.
    """
    for result in results:
        if _keys(result) != _keys(results[0]):
            raise InputError(
                "the results under several seeds do not have the same measurements: one has "
                f"{_names(results[0])}, another {_names(result)}; measure all alike"
            )
    found = []
    for measurements in zip(*(result.measurements for result in results), strict=True):
        name, scoring = measurements[0].name, measurements[0].scoring
        rows = [m.outcomes for m in measurements if m.outcomes is not None]
        if len(rows) < len(measurements) or len({o.items for o in rows}) > 1:
            raise InputError(
                f"the results on {name} under several seeds are not of the same rows; measure them "
                "again"
            )
        if measurements[0].metric == "accuracy":
            correct = np.array([o.correct for o in rows], dtype=np.float64)
            found.append(SeedFigures(name, "accuracy", scoring, correct))
        if all(o.nats for o in rows):
            losses = np.array([np.divide(o.nats, o.tokens) for o in rows])
            found.append(SeedFigures(name, "completion_loss", scoring, losses))
    return found


def compare_seeds(results: Mapping[str, Sequence[Results]], baseline: str) -> list[Comparison]:
    """Every model beside `baseline` under the same seeds, on the same rows.

    Args:
        results: one a seed, of one or more models beside the baseline.

    Raises:
        InputError: there is no baseline; the models do not have the same seeds, measurements and
            rows; or as `figures_of`.
    """
    if not results.get(baseline):
        raise InputError(
            f"to compare with {baseline!r}, give its results, one a seed; there are results of "
            f"{', '.join(name for name, own in results.items() if own) or 'none'}"
        )
    first, base = results[baseline][0], figures_of(results[baseline])
    found: list[Tested] = []
    for name, own in results.items():
        if name == baseline:
            continue
        if len(own) != len(results[baseline]):
            raise InputError(
                f"{name} has results under {len(own)} seeds, and {baseline} under "
                f"{len(results[baseline])}; the same are needed"
            )
        if _keys(own[0]) != _keys(first):
            raise InputError(
                f"{name} and {baseline} do not have the same measurements: one has "
                f"{_names(own[0])}, the other {_names(first)}; measure both alike"
            )
        for measured, other in zip(own[0].measurements, first.measurements, strict=True):
            _outcomes(measured, other, name, baseline)
        known = {figures.key: figures.values for figures in base}
        for figures in figures_of(own):
            if figures.key not in known:  # losses that one of the two was read without
                continue
            seeds, count = figures.values.shape
            about = {
                "name": figures.name,
                "metric": figures.metric,
                "scoring": figures.scoring,
                "model": name,
                "baseline": baseline,
                "count": count,
                "seeds": seeds,
                "test": "crossed_t",
            }
            found.append((crossed_t(figures.values, known[figures.key]), about))
    return _family(found)
