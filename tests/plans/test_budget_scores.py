"""Scores: min-max, smoothing, orientation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerif.plans.maps.scores import (
    ConstantScoresError,
    minmax,
    positions,
    smoothed,
    smoothing_window,
)

distinct_scores = st.lists(st.integers(-999, 999), min_size=2, max_size=40, unique=True).map(
    lambda values: np.array(values, dtype=float)
)


def test_nothing_changes_its_argument() -> None:
    scores = np.arange(9.0)
    smoothed(scores[:3])[0] = 99
    positions(scores[:2], "direct")[0] = 99
    assert (scores == np.arange(9.0)).all()


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
    with pytest.raises(ConstantScoresError, match=r"apart.*uniform"):
        minmax(scores)


def test_smooth_agrees_with_the_published_curve(paper: dict[str, Any]) -> None:
    # Would see: another window, order or treatment of the ends (4 digits were published).
    found = smoothed(paper["influence_raw_minmax"])
    np.testing.assert_allclose(found, paper["influence_savgol_7_3"], rtol=0, atol=5e-5)


def test_smoothing_window_fits_the_layers() -> None:
    windows = [smoothing_window(layers) for layers in range(1, 10)]
    assert windows == [None] * 4 + [5, 5, 7, 7, 7]


@pytest.mark.parametrize("layers", [1, 3, 4, 5, 6, 7, 8, 32])
def test_smooth_keeps_cubics(layers: int) -> None:
    # Would see: a lower order, and ends padded by any mode other than interp.
    x = np.linspace(-1, 1, layers)
    cubic = 2 + x - 3 * x**2 + 4 * x**3
    np.testing.assert_allclose(smoothed(cubic), cubic, atol=1e-12)


def test_smooth_is_the_least_squares_cubic_in_one_window() -> None:
    # Independent of the filter: with as many layers as the window, one polynomial fits all.
    scores = np.array([0.0, 3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    x = np.arange(7)
    np.testing.assert_allclose(smoothed(scores), np.polyval(np.polyfit(x, scores, 3), x))


def test_positions_are_minmax_or_turned_round() -> None:
    scores = [-1.0, -0.5, 1.0]
    assert positions(scores, "direct").tolist() == [0, 0.25, 1]
    assert positions(scores, "inverse").tolist() == [1, 0.75, 0]


def test_equal_scores_have_no_positions() -> None:
    with pytest.raises(ConstantScoresError):
        positions([2.0, 2.0], "direct")
    assert positions([2.0, 2.0], "direct", "uniform") is None
    assert positions([2.0], "direct") is None
