"""Scores: aggregation of influence, min-max, smoothing, orientation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from layerif.artifacts.aggregation import aggregate, check_scores

from layerif.errors import InputError
from layerif.plans.maps import (
    ConstantScoresError,
    minmax,
    orient,
    smoothed,
    smoothing_window,
)

INFLUENCE = np.array([[3.0, -1.0, 2.0, -4.0], [-1.0, -2.0, -3.0, -4.0], [1.0, 2.0, 3.0, 4.0]])

distinct_scores = st.lists(st.integers(-999, 999), min_size=2, max_size=40, unique=True).map(
    lambda values: np.array(values, dtype=float)
)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("all", [0, -10, 10]),
        ("positive", [5, 0, 10]),
        ("top", [3, -1, 4]),
        ("negative", [5, 10, 0]),
    ],
)
def test_aggregate_by_hand(how: str, expected: list[float]) -> None:
    assert aggregate(INFLUENCE, how).tolist() == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("samples", "k"), [(1, 1), (2, 1), (5, 1), (6, 2), (8, 2), (10, 2), (14, 4), (300, 75)]
)
def test_top_takes_a_quarter_of_the_samples_halves_to_even(samples: int, k: int) -> None:
    # Would see: truncation (6 gives 1), halves up (10 gives 3), no floor of one sample.
    assert aggregate(np.ones((2, samples)), "top").tolist() == [k, k]


def test_top_is_each_layers_own() -> None:
    # Would see: the samples chosen once, by the sum over layers, instead of per layer.
    assert aggregate([[9.0, 0, 0, 0], [0, 0, 0, 7.0]], "top").tolist() == [9, 7]


@given(arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 9)),
              elements=st.floats(-1e3, 1e3)))  # fmt: skip
def test_aggregations_fit_together(influence: np.ndarray) -> None:
    scores = {how: aggregate(influence, how) for how in ("all", "positive", "top", "negative")}
    np.testing.assert_allclose(scores["positive"] - scores["negative"], scores["all"], atol=1e-9)
    assert (scores["top"] <= scores["positive"] + 1e-9).all()
    assert (scores["negative"] >= 0).all()
    assert (scores["positive"] >= 0).all()


def test_negative_of_samples_that_all_help_is_plain_zero() -> None:
    # Would see: -0.0, which prints as such in a saved artifact.
    (score,) = aggregate([[1.0, 2.0]], "negative")
    assert math.copysign(1, score) == 1
    assert score == 0


def test_nothing_changes_its_argument() -> None:
    influence, scores = INFLUENCE.copy(), np.arange(9.0)
    for how in ("all", "positive", "top", "negative"):
        aggregate(influence, how)  # type: ignore[arg-type]
    check_scores(scores)[0] = 99
    smoothed(scores[:3])[0][0] = 99
    orient(scores[:2], "direct")[0] = 99
    assert (influence == INFLUENCE).all()
    assert (scores == np.arange(9.0)).all()


@pytest.mark.parametrize(
    ("influence", "says"),
    [
        ([1.0, 2.0], r"shape \(2,\).*\(layers, samples\)"),
        (np.empty((3, 0)), r"shape \(3, 0\)"),
        ([[1.0, 2.0], [np.nan, 1.0], [0.0, np.inf]], r"layers 1, 2 are not finite \(first: nan\)"),
        ([[1.0, 2.0], [1.0]], "not numbers in a regular array"),
    ],
)
def test_aggregate_refuses(influence: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        aggregate(influence)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([], r"shape \(0,\)"),
        (3.0, r"shape \(\)"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
        ([1.0, np.nan, 2.0], r"layer 1 are not finite \(first: nan\)"),
        ([-np.inf] * 10, r"layers 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"),
        (["high", "low"], "not numbers"),
    ],
)
def test_check_scores_refuses(scores: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_scores(scores)  # type: ignore[arg-type]


@given(distinct_scores, st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_minmax_spans_the_unit_interval_whatever_the_scale(
    scores: np.ndarray, scale: float, offset: float
) -> None:
    q = minmax(scores)
    assert (q.min(), q.max()) == (0, 1)
    assert (np.argsort(q) == np.argsort(scores)).all()
    np.testing.assert_allclose(minmax(scale * (scores + offset)), q, atol=1e-9)


def test_minmax_of_scores_whose_difference_overflows() -> None:
    assert minmax([-1.7e308, 0.0, 1.7e308]).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("scores", [[2.5] * 4, [0.0] * 3, [7.0], [0.1 + 0.2, 0.3], [-1e-300] * 2])
def test_minmax_refuses_scores_that_are_equal_up_to_round_off(scores: list[float]) -> None:
    # Would see: NaN from 0/0, or a last bit blown up into the whole range.
    with pytest.raises(ConstantScoresError, match=r"do not tell the layers apart.*uniform"):
        minmax(scores)


def test_smooth_agrees_with_the_published_curve(paper_dir: Path) -> None:
    # Would see: another window, order or treatment of the ends (4 digits were published).
    paper = json.loads((paper_dir / "mistral-7b.json").read_text())
    found, window = smoothed(paper["influence_raw_minmax"])
    assert window == 7
    np.testing.assert_allclose(found, paper["influence_savgol_7_3"], rtol=0, atol=5e-5)


def test_smoothing_window_fits_the_layers() -> None:
    windows = [smoothing_window(layers) for layers in range(1, 10)]
    assert windows == [None] * 4 + [5, 5, 7, 7, 7]


@pytest.mark.parametrize("layers", [1, 3, 4, 5, 6, 7, 8, 32])
def test_smooth_keeps_cubics(layers: int) -> None:
    # Would see: a lower order, and ends padded by any mode other than interp.
    x = np.linspace(-1, 1, layers)
    cubic = 2 + x - 3 * x**2 + 4 * x**3
    found, window = smoothed(cubic)
    np.testing.assert_allclose(found, cubic, atol=1e-12)
    assert window == smoothing_window(layers)


def test_smooth_is_the_least_squares_cubic_in_one_window() -> None:
    # Independent of the filter: with as many layers as the window, one polynomial fits all.
    scores = np.array([0.0, 3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    x = np.arange(7)
    np.testing.assert_allclose(smoothed(scores)[0], np.polyval(np.polyfit(x, scores, 3), x))


def test_orient() -> None:
    q = [0.0, 0.25, 1.0]
    assert orient(q, "direct").tolist() == q
    assert orient(q, "inverse").tolist() == [1, 0.75, 0]


def test_orient_refuses_what_is_not_a_position() -> None:
    with pytest.raises(InputError, match=r"from -1 to 2.*minmax"):
        orient([-1.0, 2.0], "inverse")


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="no orientation 'up'; choose one of direct, inverse"):
        orient([0.0, 1.0], "up")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no aggregation 'mean'.*all, positive, top, negative"):
        aggregate(INFLUENCE, "mean")  # type: ignore[arg-type]
