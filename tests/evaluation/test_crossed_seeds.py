"""Differences over seeds and items: few seeds count as few."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from helpers.artifact_samples import MODEL, SETTING
from layerif.artifacts import Measurement, Outcomes, Results
from layerif.errors import InputError
from layerif.evaluation.comparison import compare_seeds
from layerif.evaluation.statistics import crossed_t


def students(values):
    """The interval and p of Student's test of one sample, by scipy."""
    found = stats.ttest_1samp(values, 0)
    return (*found.confidence_interval(0.95), found.pvalue)


def test_where_seeds_alone_differ_it_is_students_test_of_the_seeds():
    of_seeds = np.random.default_rng(1).normal(0.2, 1, size=9)
    found = crossed_t(np.tile(of_seeds[:, None], (1, 40)), np.zeros((9, 40)))
    assert (found.low, found.high, found.p) == pytest.approx(students(of_seeds), rel=1e-9)


def test_where_items_alone_differ_it_is_students_test_of_the_items():
    of_items = np.random.default_rng(2).normal(0.2, 1, size=40)
    found = crossed_t(np.tile(of_items, (40, 1)), np.zeros((40, 40)))
    assert (found.low, found.high, found.p) == pytest.approx(students(of_items), rel=1e-9)


def test_the_variance_is_that_of_a_layout_worked_out_by_loops():
    generator = np.random.default_rng(3)
    d = generator.normal(size=(4, 30)) + generator.normal(size=(4, 1)) + generator.normal(size=30)
    seeds, items = d.shape
    rows, columns, mean = d.mean(1), d.mean(0), d.mean()
    ms_seed = sum(items * (r - mean) ** 2 for r in rows) / (seeds - 1)
    ms_item = sum(seeds * (c - mean) ** 2 for c in columns) / (items - 1)
    ms_rest = sum(
        (d[s, i] - rows[s] - columns[i] + mean) ** 2 for s in range(seeds) for i in range(items)
    ) / ((seeds - 1) * (items - 1))
    total = ms_seed + ms_item - ms_rest
    reach = stats.t.ppf(0.975, 3) * (total / (seeds * items)) ** 0.5
    found = crossed_t(d, np.zeros_like(d))
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach), rel=1e-9)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_few_seeds_cover_the_truth(seeds):
    # Would see: resampled seeds, whose intervals hold the truth in 60 to 85 % of the draws.
    generator, covered = np.random.default_rng(seeds), 0
    for _ in range(800):
        shape = (seeds, 25)
        d = 0.3 + generator.normal(size=(seeds, 1)) + generator.normal(size=25)
        found = crossed_t(d + generator.normal(size=shape), np.zeros(shape))
        covered += found.low <= 0.3 <= found.high
    assert covered / 800 > 0.93


@pytest.mark.parametrize(("seeds", "least"), [(1, 1.0), (2, 0.5), (3, 0.25), (6, 1 / 32)])
def test_few_seeds_prove_little_however_far_apart(seeds, least):
    noise = np.random.default_rng(4).normal(size=(2, seeds, 500)) * 1e-3
    assert crossed_t(noise[0] + 99, noise[1]).p == least


def test_two_items_are_two_coins():
    noise = np.random.default_rng(5).normal(size=(2, 8, 2)) * 1e-3
    assert crossed_t(noise[0] + 99, noise[1]).p == 0.5


def test_equal_figures_have_no_difference():
    ones = np.ones((3, 4))
    assert crossed_t(ones, ones)[2:] == (0, 0, 0, 1)


def test_a_single_seed_has_no_interval():
    found = crossed_t(np.arange(4.0)[None], np.zeros((1, 4)))
    assert (found.difference, found.low, found.high, found.p) == (1.5, None, None, 1)


@pytest.mark.parametrize(("first", "second"), [([[1.0]], [[1.0, 2.0]]), ([], []), ([1.0], [2.0])])
def test_figures_of_other_shapes_are_refused(first, second):
    with pytest.raises(InputError, match="seeds"):
        crossed_t(first, second)


def under_seeds(*rows, name="t", items="rows", **more):
    """Results of one model, a seed each, from which rows are right."""
    outcomes = [Outcomes(items=items, correct=correct) for correct in rows]
    return [
        Results(
            model=MODEL,
            sparsity=0.5,
            measurements=[
                Measurement(
                    name=name,
                    metric="accuracy",
                    value=sum(own.correct) / len(own.correct),
                    count=len(own.correct),
                    outcomes=own,
                    **more,
                )
            ],
            setting=SETTING,
        )
        for own in outcomes
    ]


BASE = under_seeds([0, 0, 1, 0], [0, 0, 0, 1])


def test_models_are_compared_with_the_baseline_and_not_the_other_way_round():
    results = {"base": BASE, "better": under_seeds([1, 0, 1, 1], [1, 1, 0, 1])}
    (found,) = compare_seeds(results, "base")
    assert (found.model, found.baseline, found.test) == ("better", "base", "crossed_t")
    assert (found.value, found.baseline_value, found.difference) == (0.75, 0.25, 0.5)
    assert (found.count, found.seeds) == (4, 2)
    assert found.low < 0.5 < found.high


def test_a_comparison_says_what_its_figures_were_read_off():
    rows = under_seeds([1, 0], [1, 1], scoring="generation")
    (found,) = compare_seeds({"base": rows, "other": rows}, "base")
    assert found.scoring == "generation"


ROWS = [1, 0, 1, 1], [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (under_seeds(*ROWS, name="u"), r"other and base .* measurements: one has u .* other t "),
        (under_seeds(*ROWS, scoring="generation"), "by generation"),
        ([m.model_copy(update={"measurements": []}) for m in BASE], "one has none"),
        (under_seeds(*ROWS, items="others"), "not the same rows"),
        (under_seeds([1, 0], [1, 1]), "2 items.*4"),
        (under_seeds(ROWS[0]), "1 seeds"),
        ([BASE[0], *under_seeds(ROWS[0], name="u")], "several seeds .* one has t .* another u "),
        ([BASE[0], *under_seeds(ROWS[0], items="others")], "several seeds .* rows"),
        ([], "0 seeds"),
    ],
)
def test_what_was_not_measured_alike_is_refused(other, says):
    with pytest.raises(InputError, match=says):
        compare_seeds({"base": BASE, "other": other}, "base")


@pytest.mark.parametrize("results", [{}, {"other": BASE}, {"base": [], "other": BASE}])
def test_a_baseline_is_needed(results):
    with pytest.raises(InputError, match="'base'"):
        compare_seeds(results, "base")
