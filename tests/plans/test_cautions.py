"""Cautions: profiles that are flat or noise, and plans that empty a layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.artifact_samples import MODEL, make_scores
from layerif.plans.allocate import allocate_experts, allocate_ranks, allocate_sparsity
from layerif.plans.maps.cautions import emptied, flat_scores, reliability, unreliable_scores

FLAT = [1.0, 1.02, 0.9, 1.1, 0.95, 1.05]
UNEVEN = [1.0, 5.0, 2.0, 8.0, 3.0, 9.0]


def influence(of_layers, noise, samples=200):
    """(layers, samples) with a mean for each layer, and noise of its own in every cell."""
    generator = np.random.default_rng(7)
    means = np.asarray(of_layers, dtype=float)[:, None]
    return means + noise * generator.normal(size=(len(of_layers), samples))


def test_reliability_is_the_share_of_variance_that_is_of_the_layers():
    # Of sums over n samples: n^2 var(means) is of the layers, n noise^2 of the draw.
    generator, samples = np.random.default_rng(1), 100
    means = generator.normal(size=2000)
    for noise in (2.0, 10.0):
        matrix = means[:, None] + noise * generator.normal(size=(2000, samples))
        expected = means.var() / (means.var() + noise**2 / samples)
        assert reliability(matrix, "all") == pytest.approx(expected, abs=0.05)


def test_a_profile_of_noise_is_called_so():
    assert unreliable_scores(influence(np.zeros(30), 1.0), "all") is not None
    assert unreliable_scores(influence(np.arange(30.0), 1.0), "all") is None


def test_a_profile_of_too_few_samples_is_not_judged():
    assert unreliable_scores(influence(np.zeros(30), 1.0, samples=3), "all") is None


def test_equal_halves_are_wholly_reliable():
    assert reliability(influence([1.0, 2.0, 5.0], 0.0), "all") == pytest.approx(1)


@pytest.mark.parametrize(
    ("scores", "flat"), [(FLAT, True), (UNEVEN, False), ([-1.0, 1.0], False), ([2.0, 2.0], False)]
)
def test_flat_is_within_a_fifth_of_the_largest(scores, flat):
    assert (flat_scores(scores) is not None) == flat


@pytest.mark.parametrize("scores", [FLAT, UNEVEN])
@pytest.mark.parametrize(
    "spend",
    [
        lambda scores: allocate_experts(scores, 40),
        lambda scores: allocate_ranks(scores, 40),
        lambda scores: allocate_sparsity(scores, 0.5, smooth=False),
        lambda scores: allocate_sparsity(scores, 0.5, map="owl"),
    ],
)
def test_every_budget_says_that_it_spreads_a_flat_profile(scores, spend, capsys):
    plan = spend(scores)
    assert ("within" in capsys.readouterr().err) == (scores is FLAT)
    assert np.ptp(plan.allocation) > 0


def test_a_layer_without_a_projection_has_no_part_in_cautions_and_smoothing(capsys):
    """Would see: its score of 0 far from the others', and a window that was not smoothed over."""
    model = MODEL.model_copy(update={"layers": 6, "layer_sizes": [8, 0, 8, 8, 8, 0]})
    plan = allocate_sparsity([1.0, 0.0, 0.9, 0.95, 0.92, 0.0], 0.5, model=model)
    assert "within" in capsys.readouterr().err
    assert plan.how["smoothing_window"] is None

    def said(scores):
        allocate_sparsity(scores, 0.5)
        return capsys.readouterr().err

    scores = make_scores(np.random.default_rng(2).normal(size=(5, 12)) + 10)
    assert "noise" in said(scores)
    influence = scores.influence.copy()
    influence[0] = 0.0
    sizes = [0, *MODEL.layer_sizes[1:]]
    model = MODEL.model_copy(update={"layer_sizes": sizes})
    assert "noise" in said(replace(scores, influence=influence, model=model))


def test_maps_that_do_not_spread_scores_say_nothing(capsys):
    allocate_experts(FLAT, 40, normalise="none")
    allocate_experts(FLAT, 40, map="uniform")
    allocate_sparsity(FLAT, 0.5, map="uniform")
    assert capsys.readouterr().err == ""


def test_layers_without_a_weight_are_named(capsys):
    plan = allocate_sparsity(UNEVEN, 0.95, epsilon=0.5, smooth=False)
    gone = [f"layer {layer}" for layer, value in enumerate(plan.allocation) if value == 1]
    assert gone
    err = capsys.readouterr().err
    assert all(name in err for name in gone)


def test_of_many_the_first_few_are_named():
    said = emptied([f"layers.{i}.mlp" for i in range(9)], [1.0] * 9)
    assert said.endswith("layers.3.mlp and 5 more")
    assert emptied(["layer 0"], [0.999]) is None
