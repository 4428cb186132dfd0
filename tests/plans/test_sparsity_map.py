"""Sparsity per layer: exact totals, bounds, and the published vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.strategies import fractions, layers, weighted_mean
from layerif.errors import InputError
from layerif.plans.allocate import allocate_sparsity
from layerif.plans.maps.scores import ConstantScoresError, minmax, smoothed
from layerif.plans.maps.sparsity import layerif_map, project_to_total, uniform_sparsity


def test_map_agrees_with_the_published_sparsities(paper: dict[str, Any]) -> None:
    # Would see: a factor 2 in epsilon, smoothing where none was asked, another normalisation.
    # The published values add up to 0.699999956; scaled to 0.7 they agree to the last digits.
    sizes = [sum(paper["shape"]["numel"])] * paper["shape"]["layers"]
    published = np.array(paper["sparsity_from_raw_S0.7_eps0.2"])
    ours = layerif_map(paper["influence_raw_minmax"], 0.7, sizes, epsilon=0.2, smooth=False)
    np.testing.assert_allclose(ours, published, rtol=0, atol=5e-8)
    scaled = published * 0.7 / published.mean()
    np.testing.assert_allclose(ours, scaled, rtol=0, atol=1e-15)


def test_map_smooths_before_it_normalises(paper: dict[str, Any]) -> None:
    # Would see: no second min-max, which would shrink the spread below (1 + eps) / (1 - eps).
    raw = paper["influence_raw_minmax"]
    ours = layerif_map(raw, 0.5, np.ones(32), epsilon=0.2)
    by_hand = layerif_map(smoothed(raw), 0.5, np.ones(32), epsilon=0.2, smooth=False)
    np.testing.assert_allclose(ours, by_hand, atol=1e-12)
    assert ours.max() / ours.min() == pytest.approx(1.2 / 0.8)


def test_published_owl_sparsities_need_no_projection(paper: dict[str, Any]) -> None:
    # Would see: values that are right already moved by a last bit.
    published = np.array(paper["owl_sparsity_S0.5"])
    assert (project_to_total(published, np.full(32, 218103808), 0.5) == published).all()


@given(layers(), fractions, fractions, st.booleans(), st.sampled_from(["direct", "inverse"]))
def test_map_meets_total_and_bounds(
    given_layers: tuple[np.ndarray, np.ndarray], sparsity: float, epsilon: float, smoothing: bool,
    orientation: Any,
) -> None:  # fmt: skip
    scores, sizes = given_layers
    s = layerif_map(scores, sparsity, sizes, epsilon=epsilon, smooth=smoothing,
                    orientation=orientation, on_constant="uniform")  # fmt: skip
    assert s.dtype == np.float64
    assert (s >= 0).all()
    assert (s <= 1).all()
    assert abs(weighted_mean(s, sizes) - sparsity) <= 1e-14


@given(layers(), fractions, fractions, st.floats(0, 1))
def test_map_stays_below_s_max(
    given_layers: tuple[np.ndarray, np.ndarray], sparsity: float, epsilon: float, room: float
) -> None:
    scores, sizes = given_layers
    s_max = min(1.0, sparsity + room)
    s = layerif_map(scores, sparsity, sizes, epsilon=epsilon, smooth=False, s_max=s_max)
    assert s.max() <= s_max
    assert abs(weighted_mean(s, sizes) - sparsity) <= 1e-14


@given(layers(), fractions, fractions)
def test_map_follows_the_scores(
    given_layers: tuple[np.ndarray, np.ndarray], sparsity: float, epsilon: float
) -> None:
    scores, sizes = given_layers
    order = np.argsort(scores)
    s = layerif_map(scores, sparsity, sizes, epsilon=epsilon, smooth=False)
    assert (np.diff(s[order]) >= 0).all()
    turned = layerif_map(
        scores, sparsity, sizes, epsilon=epsilon, smooth=False, orientation="inverse"
    )
    assert (np.diff(turned[order]) <= 0).all()


@given(layers(), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.booleans())
def test_map_ignores_scale_and_offset(
    given_layers: tuple[np.ndarray, np.ndarray], scale: float, offset: float, smoothing: bool
) -> None:
    scores, sizes = given_layers
    options: dict[str, Any] = {"smooth": smoothing, "on_constant": "uniform"}
    s = layerif_map(scores, 0.6, sizes, **options)
    moved = layerif_map(scale * (scores + offset), 0.6, sizes, **options)
    np.testing.assert_allclose(moved, s, atol=1e-9)


@given(layers(), st.randoms())
def test_map_does_not_care_for_the_order_of_unsmoothed_layers(
    given_layers: tuple[np.ndarray, np.ndarray], random: Any
) -> None:
    scores, sizes = given_layers
    order = random.sample(range(scores.size), scores.size)
    s = layerif_map(scores, 0.7, sizes, epsilon=0.5, smooth=False)
    shuffled = layerif_map(scores[order], 0.7, sizes[order], epsilon=0.5, smooth=False)
    np.testing.assert_allclose(shuffled, s[order], atol=1e-14)


def test_map_is_the_formula_where_nothing_is_out_of_range() -> None:
    scores, sizes = np.array([1.0, 5.0, 2.0]), np.array([10.0, 20.0, 70.0])
    q = 0.9 + 0.2 * minmax(scores)
    expected = q * 0.5 * 100 / (sizes @ q)
    np.testing.assert_allclose(layerif_map(scores, 0.5, sizes, smooth=False), expected, atol=1e-15)


def test_map_cuts_at_one_and_gives_the_rest_to_the_others() -> None:
    # Would see: the plain formula, which asks 1.35 of the last layer.
    s = layerif_map([0.0, 0.5, 1.0], 0.9, [1, 1, 1], epsilon=0.5, smooth=False)
    np.testing.assert_allclose(s, [0.625, 1, 1], atol=0.1)
    assert s[2] == 1
    assert s.sum() == pytest.approx(2.7, abs=1e-14)


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_map_at_the_ends_leaves_no_choice(sparsity: float) -> None:
    s = layerif_map([1.0, 2.0, 5.0], sparsity, [3, 1, 2], epsilon=1.0)
    assert s.tolist() == [sparsity] * 3


def test_one_layer_gets_the_total() -> None:
    assert layerif_map([3.0], 0.37, [100]).tolist() == [0.37]
    assert uniform_sparsity(0.37, [100]).tolist() == [0.37]


def test_uniform() -> None:
    assert uniform_sparsity(0.3, [1, 2, 3]).tolist() == [0.3] * 3


# The first is constant as it stands; the second is pure fourth-order, which a cubic smooths away.
@pytest.mark.parametrize("scores", [[2.0] * 5, [1.0, -4.0, 6.0, -4.0, 1.0]])
def test_scores_that_say_nothing(scores: list[float]) -> None:
    # Would see: round-off left by the smoothing, stretched to the full range by min-max.
    with pytest.raises(ConstantScoresError, match="apart"):
        layerif_map(scores, 0.5, [1] * 5)
    assert layerif_map(scores, 0.5, [1] * 5, on_constant="uniform").tolist() == [0.5] * 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sparsity": 1.2}, "sparsity is 1.2"),
        ({"sparsity": np.nan}, "sparsity is nan"),
        ({"s_max": 0.4}, "s_max = 0.4"),
        ({"layer_sizes": [1, 2]}, "2 layer sizes"),
        ({"layer_sizes": [1, 0, -3]}, "sizes of layers 1, 2 .*positive"),
        ({"scores": [1.0, np.inf, 2.0]}, "layer 1 .*finite"),
    ],
)
def test_map_refuses(arguments: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {"scores": [1.0, 2.0, 4.0], "sparsity": 0.5, "layer_sizes": [1, 2, 3]}
    with pytest.raises(InputError, match=says):
        layerif_map(**(good | arguments))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epsilon", 1.5),
        ("epsilon", -0.1),
        ("s_max", 2.0),
        ("lam", 0.6),
        ("lam", -0.1),
        ("lam", np.nan),
        ("orientation", "down"),
        ("on_constant", "skip"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    map = "owl" if option == "lam" else "layerif"
    with pytest.raises(InputError, match=f"{option}={value!r}"):
        allocate_sparsity([1.0, 2.0, 4.0], 0.5, map=map, **{option: value})


@pytest.mark.parametrize(("sparsity", "sizes"), [(-0.1, [1, 2]), (0.5, [1, 0]), (0.5, [])])
def test_uniform_refuses(sparsity: float, sizes: list[int]) -> None:
    with pytest.raises(InputError):
        uniform_sparsity(sparsity, sizes)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float, float, float]:
    """Values in and out of the bounds, often tied, with a total that can be met."""
    n = draw(st.integers(1, 12))
    value = st.one_of(st.integers(-2, 3).map(float), st.floats(-5, 5))
    values = np.array(draw(st.lists(value, min_size=n, max_size=n)))
    weights = np.array(draw(st.lists(st.floats(0.01, 100), min_size=n, max_size=n)))
    low, width = draw(st.floats(-1, 1)), draw(st.floats(0.01, 2))
    total = low + draw(st.one_of(fractions, st.sampled_from([0.0, 0.5, 1.0]))) * width
    high = low + width
    return values, weights, min(total, high), low, high


@given(problems())
def test_projection_is_exact_and_within_bounds(problem: Any) -> None:
    values, weights, total, low, high = problem
    x = project_to_total(values, weights, total, low, high)
    assert abs(weighted_mean(x, weights) - total) <= 1e-13
    assert (x >= low).all()
    assert (x <= high).all()
    assert (np.diff(x[np.argsort(values)]) >= 0).all()


@given(problems())
@settings(max_examples=50)
def test_projection_agrees_with_root_finding(problem: Any) -> None:
    # The oracle solves for the shift by an unrelated method, bisection.
    from scipy.optimize import bisect

    values, weights, total, low, high = problem

    def excess(c: float) -> float:
        return weighted_mean(np.clip(values + c, low, high), weights) - total

    reach = 10 + np.abs(values).max()
    if excess(-reach) >= 0 or excess(reach) <= 0:
        return  # the total is a bound: no change of sign to bisect, and one answer only
    expected = np.clip(values + bisect(excess, -reach, reach, xtol=1e-13), low, high)
    x = project_to_total(values, weights, total, low, high)
    np.testing.assert_allclose(x, expected, atol=1e-9)


def test_projection_is_the_nearest_point() -> None:
    # Against a general optimiser on the distance that the docstring promises to be least.
    from scipy.optimize import minimize

    random = np.random.default_rng(0)
    for _ in range(5):
        values, weights = random.normal(0.5, 0.6, 6), random.uniform(0.5, 3, 6)
        total = random.uniform(0.2, 0.8)
        found = minimize(
            lambda x, v=values, w=weights: (w * (x - v) ** 2).sum(),
            np.full(6, total),
            jac=lambda x, v=values, w=weights: 2 * w * (x - v),
            bounds=[(0, 1)] * 6,
            constraints={
                "type": "eq",
                "fun": lambda x, w=weights, t=total: w @ x - t * w.sum(),
                "jac": lambda x, w=weights: w,
            },
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(project_to_total(values, weights, total), found.x, atol=1e-6)


@given(problems())
def test_projection_leaves_its_own_results_alone(problem: Any) -> None:
    values, weights, total, low, high = problem
    x = project_to_total(values, weights, total, low, high)
    np.testing.assert_allclose(project_to_total(x, weights, total, low, high), x, atol=1e-14)


def test_projection_by_hand() -> None:
    # The last cannot go up, so the first two take what is missing, the same each.
    assert project_to_total([0.25, 0.5, 1.0], [1, 1, 2], 0.75).tolist() == [0.375, 0.625, 1]
    assert project_to_total([0.2, 0.4], [1, 3], 0.35).tolist() == [0.2, 0.4]
    # Far apart: between two knots every shift gives the same, and both are at a bound.
    assert project_to_total([-50.0, 50.0], [1, 1], 0.5).tolist() == [0, 1]
    assert project_to_total([-50.0, 50.0], [1, 1], 0.25).tolist() == [0, 0.5]


def test_projection_of_far_off_values_keeps_the_total() -> None:
    # Would see: a total lost in the last digits of a shift that is large beside the bounds.
    x = project_to_total([1e12, 1e12 + 0.25, -1e12], [1, 1, 1], 0.3)
    assert abs(x.mean() - 0.3) <= 1e-15


@pytest.mark.parametrize(
    ("total", "low", "high"),
    [(1.1, 0, 1), (-0.1, 0, 1), (0.5, 0.6, 1), (0.5, 1, 0), (np.nan, 0, 1), (0.5, 0, np.inf)],
)
def test_projection_refuses_what_cannot_be_met(total: float, low: float, high: float) -> None:
    with pytest.raises(InputError, match="weighted mean"):
        project_to_total([0.1, 0.2], [1, 1], total, low, high)


def test_projection_refuses_weights_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="2 values"):
        project_to_total([0.1, 0.2], [1], 0.5)
    with pytest.raises(InputError, match=r"layer 1 .*positive"):
        project_to_total([0.1, 0.2], [1, 0], 0.5)
