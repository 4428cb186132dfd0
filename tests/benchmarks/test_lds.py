"""The arithmetic of benchmarks/lds.py, against scipy and worlds in which the answer is known."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from helpers.scoring import TRAIN, VALIDATION, WANTED
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.core.checkpoint import resumable


@pytest.fixture(scope="module")
def lds():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
        yield importlib.import_module("lds")
        for name in ("lds", "lds_statistics"):
            del sys.modules[name]


def test_spearman_is_scipys_with_ties_too(lds):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 6, (2, 4, 15)).astype(float)
    expected = [spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(lds.spearman(first, second), expected, rtol=1e-12)


def test_additive_losses_score_one_and_the_other_sign_minus_one(lds):
    help_ = np.random.default_rng(1).normal(size=20)
    subsets = np.array([lds.draw(number, 20) for number in range(30)])
    losses = 5 - help_[subsets].sum(1)
    assert lds.lds(help_, subsets, losses) == pytest.approx((1, 1, 1))
    assert lds.lds(-help_, subsets, losses) == pytest.approx((-1, -1, -1))


def test_the_score_is_of_sums_over_the_subset_and_lies_in_its_interval(lds):
    rng = np.random.default_rng(2)
    values, losses = rng.normal(size=20), rng.normal(size=40)
    subsets = np.array([lds.draw(number, 20) for number in range(40)])
    value, low, high = lds.lds(values, subsets, losses)
    sums = [sum(values[i] for i in subset) for subset in subsets]
    assert value == pytest.approx(-spearmanr(sums, losses).statistic)
    assert low < value < high
    other = rng.normal(size=20)
    assert lds.lds(values, subsets, losses, values) == (0, 0, 0)
    difference = lds.lds(values, subsets, losses, other)
    assert difference.value == pytest.approx(value - lds.lds(other, subsets, losses).value)
    assert difference.low < difference.value < difference.high
    # That of 40 independent pairs, 1.96 / sqrt(39), about.
    assert high - low == pytest.approx(2 * 0.31, rel=0.3)


def test_a_subset_is_half_of_the_samples_and_stays_the_same(lds):
    assert len(set(lds.draw(3, 21).tolist())) == 10
    np.testing.assert_array_equal(lds.draw(3, 21), lds.draw(3, 21))
    assert lds.draw(3, 21).tolist() != lds.draw(4, 21).tolist()


def test_reliability_is_one_where_samples_agree_and_zero_where_they_do_not(lds):
    profile, rng = np.linspace(1, 2, 12)[:, None], np.random.default_rng(3)
    assert lds.reliability(profile * np.ones(40), "all") == pytest.approx(1)
    assert abs(lds.reliability(rng.normal(size=(500, 40)), "top")) < 0.1


def test_estimators_share_gradients_and_no_solutions(lds, tmp_path):
    """Each gives what it gives alone, though the first has left its solved blocks."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = {}
    for estimator in ("grad_dot", "exact", "datainf"):
        variant = lds.Variant("fresh_lora", estimator)
        run = partial(lds.scoring, model, tokenizer, TRAIN, VALIDATION, variant)
        found[estimator] = lds.with_gradients(tmp_path / "gradients", WANTED, run, None)
        with resumable(tmp_path / estimator, WANTED) as steps:
            alone = run(steps)
        assert torch.equal(found[estimator]["influence"], alone["influence"])
    assert not torch.allclose(found["grad_dot"]["influence"], found["exact"]["influence"])
