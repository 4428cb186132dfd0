"""From influence (layers, samples) to one number a layer, and what scores of layers must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from layerif.errors import InputError
from layerif.plans.maps.scores import aggregate, check_scores

INFLUENCE = np.array([[3.0, -1.0, 2.0, -4.0], [-1.0, -2.0, -3.0, -4.0], [1.0, 2.0, 3.0, 4.0]])


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


@pytest.mark.parametrize(
    ("influence", "says"),
    [
        ([1.0, 2.0], r"\(2,\).*\(layers, samples\)"),
        (np.empty((3, 0)), r"\(3, 0\)"),
        ([[1.0, 2.0], [np.nan, 1.0], [0.0, np.inf]], r"layers 1, 2 .*nan"),
        ([[1.0, 2.0], [1.0]], "regular array"),
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
        ([[1.0, 2.0]], r"\(1, 2\)"),
        ([1.0, np.nan, 2.0], r"layer 1 .*nan"),
        ([-np.inf] * 10, r"layers 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"),
        (["high", "low"], "not numbers"),
    ],
)
def test_check_scores_refuses(scores: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_scores(scores)  # type: ignore[arg-type]


def test_nothing_changes_its_argument() -> None:
    influence, scores = INFLUENCE.copy(), np.arange(9.0)
    for how in ("all", "positive", "top", "negative"):
        aggregate(influence, how)  # type: ignore[arg-type]
    check_scores(scores)[0] = 99
    assert (influence == INFLUENCE).all()
    assert (scores == np.arange(9.0)).all()


def test_an_unknown_aggregation_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'mean'.*all, positive, top, negative"):
        aggregate(INFLUENCE, "mean")  # type: ignore[arg-type]
