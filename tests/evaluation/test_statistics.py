"""Intervals and tests against definitions, brute force, and simulations of what they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from layerif.errors import InputError
from layerif.evaluation.statistics import (
    f1,
    holm,
    matthews,
    mcnemar,
    paired_bootstrap,
    perplexity_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (3, 10), (400, 500), (9, 9)])
def test_the_interval_is_wilsons(hits, count):
    # The proportions from which hits / count is 1.96 of their own standard errors away.
    z = stats.norm.ppf(0.975)
    square = [1 + z**2 / count, -(2 * hits + z**2) / count, (hits / count) ** 2]
    assert wilson_interval(hits, count) == pytest.approx(sorted(np.roots(square)), abs=1e-12)


class TestPerplexityInterval:
    def test_is_a_bootstrap_of_the_ratio(self):
        # Would see: chunks weighed alike whatever their tokens, or tokens resampled by themselves.
        generator = np.random.default_rng(0)
        tokens = generator.integers(20, 500, 60)
        nats = tokens * generator.normal(3, 0.4, 60)
        expected = stats.bootstrap(
            (nats, tokens),
            lambda n, t, axis: np.exp(n.sum(axis) / t.sum(axis)),
            paired=True,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert perplexity_interval(nats, tokens) == pytest.approx(expected, rel=0.01)

    def test_covers_the_truth_about_as_often_as_it_says(self):
        generator = np.random.default_rng(2)
        covered = 0
        for trial in range(300):
            tokens = generator.integers(50, 100, 40)
            nats = tokens * generator.gamma(9, 1 / 3, 40)  # mean 3 nats a token, whatever its chunk
            low, high = perplexity_interval(nats, tokens, resamples=2000, seed=trial)
            covered += low < math.exp(3) < high
        assert 0.90 <= covered / 300 <= 0.98

    def test_is_the_same_every_time_and_none_for_one_chunk(self):
        nats, tokens = np.random.default_rng(9).gamma(30, 1, (2, 20)) + 1
        assert perplexity_interval(nats, tokens) == perplexity_interval(nats, tokens)
        assert perplexity_interval(nats, tokens) != perplexity_interval(nats, tokens, seed=1)
        assert perplexity_interval([30.0], [10]) is None

    def test_many_items_are_drawn_in_blocks(self):
        # Would see: part of the resamples left unfilled, where they do not fit in one block.
        generator = np.random.default_rng(3)
        nats = generator.normal(3, 1, 30_000)
        low, high = perplexity_interval(nats, np.ones(30_000), resamples=500)
        spread = 2 * 1.96 * nats.std() / math.sqrt(30_000)
        assert math.log(high) - math.log(low) == pytest.approx(spread, rel=0.15)


class TestPairedBootstrap:
    def test_agrees_with_the_t_test_where_both_hold(self):
        generator = np.random.default_rng(4)
        for shift in (0.0, 0.02, 0.05):
            first = generator.normal(2, 1, 400)  # a spread far above that of the differences
            second = first + shift + generator.normal(0, 0.3, 400)
            found = paired_bootstrap(first, second)
            expected = stats.ttest_rel(first, second)
            bounds = expected.confidence_interval(0.95)
            assert found.difference == pytest.approx(first.mean() - second.mean())
            assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), abs=0.002)
            assert found.p == pytest.approx(expected.pvalue, abs=0.02)

    def test_covers_and_rejects_about_as_often_as_it_says(self):
        generator = np.random.default_rng(5)
        covered = rejected = 0
        for trial in range(300):
            first = generator.exponential(1, 50)
            second = first + generator.normal(0, 1, 50)
            found = paired_bootstrap(first, second, resamples=2000, seed=trial)
            covered += found.low < 0 < found.high
            rejected += found.p < 0.05
        assert 0.90 <= covered / 300 <= 0.98
        assert 0.02 <= rejected / 300 <= 0.10

    def test_p_agrees_with_the_interval(self):
        generator = np.random.default_rng(6)
        for shift in np.linspace(0, 0.4, 30):
            differences = generator.normal(shift, 1, 60)
            found = paired_bootstrap(differences, np.zeros(60), resamples=2000)
            if abs(found.p - 0.05) > 0.004:
                assert (found.p < 0.05) == (found.low > 0 or found.high < 0)

    def test_perplexities_are_those_of_all_tokens(self):
        nats, tokens = np.array([[30.0, 80.0, 12.0], [33.0, 70.0, 18.0]]), [10, 30, 5]
        found = paired_bootstrap(*nats, tokens, transform=np.exp)
        values = np.exp(nats.sum(1) / 45)
        assert (found.value, found.baseline_value) == pytest.approx(values)
        assert found.difference == pytest.approx(values[0] - values[1])
        assert found.low < found.difference < found.high

    def test_models_that_are_the_same_do_not_differ(self):
        values = np.random.default_rng(7).normal(size=30)
        found = paired_bootstrap(values, values)
        assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)

    def test_p_is_never_0_and_a_few_items_prove_little(self):
        # Would see: three chunks that all went one way called significant.
        assert paired_bootstrap(np.zeros(50), np.arange(1.0, 51)).p == 2 / 10_001
        assert paired_bootstrap([1.0, 1.1, 1.3], [2.0, 2.2, 2.1]).p == 0.25
        assert paired_bootstrap([1.0, 1.0, 1.3], [1.0, 1.0, 2.1]).p == 1
        one = paired_bootstrap([1.0], [2.0])
        assert (one.difference, one.low, one.high, one.p) == (-1, None, None, 1)

    def test_the_order_of_the_two_turns_the_sign_alone(self):
        first, second = np.random.default_rng(8).normal(size=(2, 40))
        one, two = paired_bootstrap(first, second), paired_bootstrap(second, first)
        assert (one.difference, one.p) == (-two.difference, two.p)
        assert (one.low, one.high) == pytest.approx((-two.high, -two.low))


class TestMcNemar:
    @pytest.mark.parametrize(
        ("ahead", "behind"), [(0, 0), (0, 1), (5, 5), (3, 12), (40, 61), (900, 1100)]
    )
    def test_is_the_binomial_test_of_the_rows_that_differ(self, ahead, behind):
        first = [True] * ahead + [False] * behind + [True] * 7 + [False] * 3
        second = [False] * ahead + [True] * behind + [True] * 7 + [False] * 3
        # Whole numbers to the end: twice the smaller tail, at most 1.
        tail = sum(math.comb(ahead + behind, k) for k in range(min(ahead, behind) + 1))
        expected = min(1.0, 2 * tail / 2 ** (ahead + behind))
        assert mcnemar(first, second) == pytest.approx(expected, rel=1e-12)
        assert mcnemar(second, first) == mcnemar(first, second)


class TestHolm:
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
    def test_is_the_smallest_level_at_which_the_steps_reject(self, p):
        # Brute force: an adjusted p is the level at which Holm's procedure first rejects.
        adjusted = holm(p)
        levels = sorted({min(1.0, v * k) for v in p for k in range(1, len(p) + 1)})
        for index in range(len(p)):
            first = next((level for level in levels if index in rejected(p, level)), 1.0)
            assert adjusted[index] == pytest.approx(first)

    def test_a_worked_example(self):
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([]) == []


def rejected(p, level):
    """Holm's procedure as he wrote it: the smallest against level / m, the next / (m - 1), ..."""
    out = set()
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] * (len(p) - rank) > level:
            break
        out.add(index)
    return out


class TestTwoClasses:
    @pytest.mark.parametrize(
        "counts", [c for c in itertools.product((0, 1, 4), repeat=4) if any(c)]
    )
    def test_against_their_definitions(self, counts):
        true = np.repeat([1, 0, 1, 0], counts)  # hits, false alarms, misses, rest
        said = np.repeat([1, 1, 0, 0], counts)
        hits, false, missed, _ = counts
        precision = hits / (hits + false) if hits else 0
        recall = hits / (hits + missed) if hits else 0
        harmonic = 2 * precision * recall / (precision + recall) if hits else 0
        assert f1(said, true) == pytest.approx(harmonic)
        scale = said.sum() * true.sum() * (1 - said).sum() * (1 - true).sum()
        correlation = (counts[0] * counts[3] - false * missed) / math.sqrt(scale) if scale else 0
        assert matthews(said, true) == pytest.approx(correlation)


@pytest.mark.parametrize("function", [mcnemar, matthews, f1, paired_bootstrap, perplexity_interval])
def test_sides_of_different_items_are_refused(function):
    for first, second in (([1, 0], [1]), ([], []), ([[1, 0]], [[1, 0]])):
        with pytest.raises(InputError, match="number"):
            function(first, second)
