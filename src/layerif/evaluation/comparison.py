"""Models compared in pairs, on the same rows and chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from layerif.artifacts import Comparison, Measurement, Outcomes, Results
from layerif.artifacts.results import SIGNIFICANCE
from layerif.errors import InputError
from layerif.evaluation.statistics import PairedDifference, holm, mcnemar, paired_bootstrap


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
    found: list[tuple[str, str, Measurement, _Test]] = []
    for name, other in pairs:
        known = {_key(m): m for m in results[other].measurements}
        shared = [m for m in results[name].measurements if _key(m) in known]
        if not shared:
            raise InputError(
                f"{name} and {other} share no measurement: one has {_names(results[name])}, the "
                f"other {_names(results[other])}"
            )
        for measurement in shared:
            outcomes = _pair(measurement, known[_key(measurement)], name, other)
            found += [(name, other, measurement, t) for t in _tests(measurement.metric, *outcomes)]
    adjusted = holm([test.p for *_, test in found])
    return [
        Comparison(
            name=measured.name,
            metric=test.metric,
            scoring=measured.scoring,
            model=name,
            baseline=other,
            value=test.paired.first,
            baseline_value=test.paired.second,
            difference=test.paired.difference,
            low=test.paired.low,
            high=test.paired.high,
            count=test.pairs,
            test=test.kind,
            p=test.p,
            p_holm=p_holm,
            inside_noise=p_holm >= SIGNIFICANCE,
        )
        for (name, other, measured, test), p_holm in zip(found, adjusted, strict=True)
    ]


def _key(measurement: Measurement) -> tuple[str, str, str]:
    """What two measurements must share to be the same figure."""
    return measurement.name, measurement.metric, measurement.scoring


class _Test(NamedTuple):
    metric: Literal["accuracy", "perplexity", "completion_loss"]
    kind: Literal["mcnemar", "paired_bootstrap"]
    paired: PairedDifference
    p: float
    pairs: int


def _tests(
    metric: Literal["accuracy", "perplexity"], one: Outcomes, two: Outcomes
) -> Iterator[_Test]:
    """The comparisons that one measurement gives, from outcomes of the same items."""
    pairs = one.count
    if metric == "perplexity":
        paired = paired_bootstrap(one.nats, two.nats, one.tokens, transform=np.exp)
        yield _Test("perplexity", "paired_bootstrap", paired, paired.p, pairs)
        return
    paired = paired_bootstrap(one.correct, two.correct)
    yield _Test("accuracy", "mcnemar", paired, mcnemar(one.correct, two.correct), pairs)
    if one.tokens and one.tokens == two.tokens:
        paired = paired_bootstrap(*(np.divide(side.nats, side.tokens) for side in (one, two)))
        yield _Test("completion_loss", "paired_bootstrap", paired, paired.p, pairs)


def _pair(
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
