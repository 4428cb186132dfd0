"""The maps of OWL and DLP: exact totals, bounds, and the published vector."""

from __future__ import annotations

from math import fsum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import bisect

from helpers.strategies import fractions, layers, weighted_mean
from layerif.errors import InputError
from layerif.plans.maps.scores import ConstantScoresError
from layerif.plans.maps.sparsity import dlp_map, layerif_map, owl_map

MAPS = [owl_map, dlp_map]
bands = st.floats(0, 0.5)


def by_definition(scores: np.ndarray, total: float, lam: float) -> np.ndarray:
    """Literally, with the unweighted mean and no bounds."""
    d = 2 * lam * (scores - scores.min()) / (scores.max() - scores.min())
    return total - (d - d.mean())


def test_owl_agrees_with_the_published_sparsities(paper: dict[str, Any]) -> None:
    # Would see: the other sign, a band of lam in place of 2 lam, the mean taken elsewhere. The
    # outlier ratios themselves are not published: they follow from the vector up to scale.
    published = np.array(paper["owl_sparsity_S0.5"])
    assert np.ptp(published) == pytest.approx(2 * 0.08, abs=1e-6)
    assert published.mean() == pytest.approx(0.5, abs=1e-6)
    sizes = np.full(32, sum(paper["shape"]["numel"]))
    for ratios in (1 - published, 40 - 17 * published):
        np.testing.assert_allclose(owl_map(ratios, 0.5, sizes), published, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("banded", "lam"), [(owl_map, 0.08), (dlp_map, 0.15)])
def test_layers_of_equal_size_get_the_published_formula(banded: Any, lam: float) -> None:
    scores = np.array([0.3, 2.0, -1.0, 0.7, 1.1])
    np.testing.assert_allclose(
        banded(scores, 0.5, [7] * 5), by_definition(scores, 0.5, lam), rtol=0, atol=1e-15
    )


def test_alpha_pruning_is_the_map_of_layerif_without_smoothing(paper: dict[str, Any]) -> None:
    # Literally from AlphaPruning's map, over the published exponents of the projections.
    alphas = np.array(paper["pl_alpha_per_projection"]).mean(1)
    sizes = np.full(32, float(sum(paper["shape"]["numel"])))
    low, high = 0.9, 1.1
    q = (alphas - alphas.min()) / (alphas.max() - alphas.min()) * (high - low) + low
    expected = q * (0.6 * sizes.sum() / (q * sizes).sum())
    ours = layerif_map(alphas, 0.6, sizes, epsilon=0.1, smooth=False)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-14)


@given(layers(), fractions, bands, st.floats(0, 1), st.sampled_from(["direct", "inverse"]))
def test_maps_meet_total_and_bounds(
    given_layers: tuple[np.ndarray, np.ndarray], sparsity: float, lam: float, room: float,
    orientation: Any,
) -> None:  # fmt: skip
    scores, sizes = given_layers
    s_max = min(1.0, sparsity + room)
    s = owl_map(scores, sparsity, sizes, lam=lam, s_max=s_max, orientation=orientation)
    assert s.dtype == np.float64
    assert s.min() >= 0
    assert s.max() <= s_max
    assert abs(weighted_mean(s, sizes) - sparsity) <= 1e-14
    assert (s == dlp_map(scores, sparsity, sizes, lam=lam, s_max=s_max, orientation=orientation)
            ).all()  # fmt: skip


@given(layers(), fractions, bands)
def test_sizes_and_bounds_are_met_by_one_shift(
    given_layers: tuple[np.ndarray, np.ndarray], sparsity: float, lam: float
) -> None:
    # Against bisection for the shift, from the literal formula.
    scores, sizes = given_layers
    wanted = by_definition(scores, sparsity, lam)

    def excess(c: float) -> float:
        return weighted_mean(np.clip(wanted + c, 0, 1), sizes) - sparsity

    if excess(-3) >= 0 or excess(3) <= 0:
        return  # the total is a bound: nothing to bisect
    shift = bisect(excess, -3, 3, xtol=1e-14)
    expected = np.clip(wanted + shift, 0, 1)
    found = owl_map(scores, sparsity, sizes, lam=lam)
    # Where the sum hardly depends on the shift, bisection leaves a little of it open.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@given(layers(), fractions, bands)
def test_high_scores_are_pruned_less_unless_turned(
    given_layers: tuple[np.ndarray, np.ndarray], sparsity: float, lam: float
) -> None:
    scores, sizes = given_layers
    order = np.argsort(scores)
    assert (np.diff(owl_map(scores, sparsity, sizes, lam=lam)[order]) <= 0).all()
    turned = owl_map(scores, sparsity, sizes, lam=lam, orientation="direct")
    assert (np.diff(turned[order]) >= 0).all()
    np.testing.assert_allclose(turned, owl_map(-scores, sparsity, sizes, lam=lam), atol=1e-12)


def test_what_is_cut_goes_to_the_others() -> None:
    # By hand: 0.95 - (d - 0.1) is 1.05, 0.95, 0.85, and the first may have 1.
    s = owl_map([0.0, 1.0, 2.0], 0.95, [1, 1, 1], lam=0.1)
    np.testing.assert_allclose(s, [1, 0.975, 0.875], atol=1e-15)
    # And with sizes: 0.6, 0.4 come to 0.45 where 0.5 is wanted.
    s = owl_map([0.0, 1.0], 0.5, [1, 3], lam=0.1)
    np.testing.assert_allclose(s, [0.65, 0.45], atol=1e-15)
    assert fsum(s * [1, 3]) / 4 == pytest.approx(0.5, abs=1e-15)


@pytest.mark.parametrize("banded", MAPS)
def test_scores_that_say_nothing(banded: Any) -> None:
    with pytest.raises(ConstantScoresError, match="apart"):
        banded([2.0] * 5, 0.5, [1] * 5)
    assert banded([2.0] * 5, 0.5, [1] * 5, on_constant="uniform").tolist() == [0.5] * 5
    assert banded([3.0], 0.37, [100]).tolist() == [0.37]


@pytest.mark.parametrize("banded", MAPS)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sparsity": 1.2}, "sparsity"),
        ({"s_max": 0.4}, "s_max"),
        ({"layer_sizes": [1, 2]}, "2 layer sizes"),
        ({"scores": [1.0, np.inf, 2.0]}, "scores of layer 1"),
    ],
)
def test_maps_refuse(banded: Any, arguments: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {"scores": [1.0, 2.0, 4.0], "sparsity": 0.5, "layer_sizes": [1, 2, 3]}
    with pytest.raises(InputError, match=says):
        banded(**(good | arguments))
