"""Experts per layer: exact totals, the floor of one, largest remainders, published vectors."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from layerif.errors import InputError
from layerif.plans.allocate import allocate_experts
from layerif.plans.maps.counts import (
    MOLA_SHAPE,
    apportion,
    apportion_as_authors,
    mola_map,
    power_map,
    uniform_counts,
)
from layerif.plans.maps.scores import ConstantScoresError

distinct_scores = st.lists(st.integers(-99, 99), min_size=2, max_size=40, unique=True).map(
    lambda values: np.array(values, dtype=float)
)
spare = st.integers(0, 300)
betas = st.floats(0.1, 10)


def exact_shares(weights: list[int], total: int) -> list[Fraction]:
    """max(1, kappa w) in rational arithmetic, kappa found by trying every number of floors."""
    heaviest = sorted(weights, reverse=True)
    for above in range(len(weights), 0, -1):
        if heaviest[above - 1] == 0:
            continue
        kappa = Fraction(total - len(weights) + above, sum(heaviest[:above]))
        if kappa * heaviest[above - 1] >= 1:
            return [max(Fraction(1), kappa * w) for w in weights]
    raise AssertionError


def largest_remainder(shares: list[Fraction], total: int) -> list[int]:
    experts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (experts[i] - shares[i], i))
    for layer in by_remainder[: total - sum(experts)]:
        experts[layer] += 1
    return experts


def test_mola_2468_is_the_published_vector(paper: dict[str, Any]) -> None:
    assert mola_map(32, 160).tolist() == paper["experts_T160"]["MoLA-2468"]


def test_alphalora_is_within_one_of_the_published_vector(paper: dict[str, Any]) -> None:
    # The authors put the whole residual of their rounding on one layer, so not all can agree.
    # Would see: another power, or a mean over the wrong axis.
    alpha = np.mean(paper["pl_alpha_per_projection"], axis=1)
    published = np.array(paper["experts_T160"]["AlphaLoRA beta=2.5 (README)"])
    ours = apportion(alpha**2.5, 160)
    assert np.abs(ours - published).max() <= 1
    assert (ours != published).sum() <= 10


@pytest.mark.parametrize("task", ["mrpc", "cola", "scienceqa_text", "openbookqa"])
def test_published_vectors_of_two_betas_are_powers_of_each_other(
    paper: dict[str, Any], task: str
) -> None:
    # Plausibility only: the scores behind them are unpublished, and n ~ q^beta would give
    # n(2.5) ~ n(1.5)^(5/3). Would see: beta as anything but an exponent.
    vectors = paper["experts_T160"]["LayerIF"][task]
    ours = apportion(np.array(vectors["beta=1.5"]) ** (5 / 3), 160)
    off = np.abs(ours - vectors["beta=2.5"])
    assert off.mean() <= 0.5
    assert off.max() <= 3


def test_published_vectors_are_legal_allocations(paper: dict[str, Any]) -> None:
    for vectors in paper["experts_T160"]["LayerIF"].values():
        for experts in vectors.values():
            assert sum(experts) == 160
            assert min(experts) >= 1
            # A fixed point: our rounding of whole shares that sum to the total is the identity.
            assert apportion(experts, 160).tolist() == experts


@given(distinct_scores, spare, betas, st.sampled_from(["direct", "inverse"]))
def test_power_map_total_floor_and_order(
    scores: np.ndarray, more: int, beta: float, orientation: Any
) -> None:
    total = scores.size + more
    experts = power_map(scores, total, beta=beta, orientation=orientation)
    assert experts.dtype == np.int64
    assert experts.sum() == total
    assert experts.min() >= 1
    rising = experts[np.argsort(scores)]
    assert (np.diff(rising if orientation == "direct" else rising[::-1]) >= 0).all()


@given(distinct_scores, spare, betas, st.integers(-20, 20), st.integers(-1000, 1000))
def test_power_map_ignores_scale_and_offset(
    scores: np.ndarray, more: int, beta: float, doublings: int, offset: int
) -> None:
    # Steps that float64 takes without rounding, so that the answers must be equal, ties included.
    total = scores.size + more
    moved = 2.0**doublings * (scores + offset)
    same = power_map(moved, total, beta=beta) == power_map(scores, total, beta=beta)
    assert same.all()


@given(distinct_scores, spare, betas, betas)
def test_larger_beta_gives_the_highest_layer_more(
    scores: np.ndarray, more: int, beta: float, other: float
) -> None:
    # Its share rises with beta; rounding may hold one back.
    low, high = (power_map(scores, scores.size + more, beta=b).max() for b in sorted((beta, other)))
    assert high >= low - 1


def test_power_map_by_hand() -> None:
    # q = 0, 1/2, 1 and beta = 1: the first is at the floor, the others share 9 as 1 to 2.
    assert power_map([5.0, 6.0, 7.0], 10, beta=1).tolist() == [1, 3, 6]
    assert power_map([5.0, 6.0, 7.0], 10, beta=1, orientation="inverse").tolist() == [6, 3, 1]
    # beta = 3, the default: 9 as 1 to 8.
    assert power_map([5.0, 6.0, 7.0], 10).tolist() == [1, 1, 8]
    # So steep that the weights underflow, all the same.
    assert power_map([5.0, 6.0, 7.0], 10, beta=1e6).tolist() == [1, 1, 8]


def test_as_many_experts_as_layers_leave_no_choice() -> None:
    scores = np.arange(9.0)
    for experts in (power_map(scores, 9), mola_map(9, 9), uniform_counts(9, 9)):
        assert experts.tolist() == [1] * 9


def test_one_layer_gets_the_total() -> None:
    for experts in (power_map([3.0], 5), mola_map(1, 5), uniform_counts(1, 5)):
        assert experts.tolist() == [5]


def test_constant_scores() -> None:
    # Would see: NaN cast to int64, which is the most negative integer and no error.
    with pytest.raises(ConstantScoresError, match="apart"):
        power_map([2.0] * 4, 10)
    assert power_map([2.0] * 4, 10, on_constant="uniform").tolist() == [3, 3, 2, 2]


@given(st.integers(1, 50), spare)
def test_uniform_gives_what_is_left_to_the_lowest_layers(layers: int, more: int) -> None:
    experts = uniform_counts(layers, layers + more)
    each, left = divmod(layers + more, layers)
    assert experts.tolist() == [each + 1] * left + [each] * (layers - left)


@pytest.mark.parametrize(
    ("layers", "lengths"),
    [
        (28, [7, 7, 7, 7]),
        (29, [8, 7, 7, 7]),
        (30, [8, 7, 8, 7]),
        (31, [8, 8, 8, 7]),
        (4, [1, 1, 1, 1]),
        (3, [1, 1, 1, 0]),
        (2, [1, 0, 1, 0]),
    ],
)
def test_mola_groups(layers: int, lengths: list[int]) -> None:
    expected = np.repeat(MOLA_SHAPE, lengths)
    assert mola_map(layers, int(expected.sum())).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("shape", "total", "groups"),
    [
        ((8, 6, 4, 2), 160, [8, 6, 4, 2]),
        ((5, 5, 5, 5), 160, [5, 5, 5, 5]),
        ((2, 4, 6, 8), 80, [1, 2, 3, 4]),
        ((2, 4, 6, 8), 320, [4, 8, 12, 16]),
        ((1, 9), 96, [1, 1, 5, 5]),
        ((3,), 96, [3, 3, 3, 3]),
        # The first group is held at the floor and the others give way: 1, 1.78, 2.67, 3.56.
        ((1, 4, 6, 8), 72, [1, 2, 3, 3]),
    ],
)
def test_mola_shapes_are_scaled_to_the_total(
    shape: tuple[int, ...], total: int, groups: list[float]
) -> None:
    experts = mola_map(32, total, shape)
    assert experts.sum() == total
    assert experts.reshape(4, 8).mean(axis=1).tolist() == groups


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 60))
def test_apportion_agrees_with_rational_arithmetic(weights: list[int], more: int) -> None:
    # Would see: kappa that stops at the wrong layer, round-off that decides a tie.
    weights[0] += 1
    total = len(weights) + more
    expected = largest_remainder(exact_shares(weights, total), total)
    assert apportion(weights, total).tolist() == expected
    assert apportion(np.array(weights) * 1e-300, total).tolist() == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 5))
def test_no_other_whole_numbers_are_nearer_to_the_shares(weights: list[int], more: int) -> None:
    total = len(weights) + more
    shares = exact_shares(weights, total)

    def distance(experts: Any) -> Fraction:
        return sum(((int(n) - s) ** 2 for n, s in zip(experts, shares, strict=True)), Fraction(0))

    everything = product(range(1, more + 2), repeat=len(weights))
    nearest = min(distance(experts) for experts in everything if sum(experts) == total)
    assert distance(apportion(weights, total)) == nearest


@given(st.lists(st.integers(1, 50), min_size=2, max_size=12), st.integers(0, 60), st.randoms())
def test_apportion_does_not_care_for_the_order_where_no_tie_decides(
    weights: list[int], more: int, random: Any
) -> None:
    total = len(weights) + more
    shares = exact_shares(weights, total)
    remainders = sorted((share % 1 for share in shares), reverse=True)
    left = int(sum(remainders))
    assume(left == 0 or remainders[left - 1] != remainders[left])
    order = random.sample(range(len(weights)), len(weights))
    shuffled = apportion([weights[i] for i in order], total)
    assert shuffled.tolist() == apportion(weights, total)[order].tolist()


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([5, 8, 5, 8, 4], 10, [2, 3, 2, 2, 1]),  # 5/3, 8/3, 5/3, 8/3, 4/3
        ([8, 5, 8, 5, 4], 10, [3, 2, 3, 1, 1]),
        ([11, 4, 5], 10, [6, 2, 2]),  # 11/2, 2, 5/2
        ([12, 5, 4], 15, [9, 3, 3]),  # 60/7, 25/7, 20/7
        ([3, 9, 6, 4], 11, [2, 4, 3, 2]),  # 3/2, 9/2, 3, 2
        ([1, 2] * 16, 51, [1, 3] * 3 + [1, 2] * 13),  # 1, 35/16
    ],
)
def test_ties_go_to_the_lower_layer(weights: list[int], total: int, expected: list[int]) -> None:
    # Would see: equal remainders of different shares told apart by their last bits, and a sort
    # that shuffles equals.
    assert apportion(weights, total).tolist() == expected


def step_by_step(weights: list[float], total: int) -> list[int]:
    """The rule of AlphaLoRA's code on plain lists, a layer's last expert left where it is."""
    layers = range(len(weights))
    experts = [max(1, round(weight / float(np.sum(weights)) * total)) for weight in weights]
    while sum(experts) != total:
        gaps = [weights[layer] - experts[layer] for layer in layers]
        if sum(experts) < total:
            experts[gaps.index(min(gaps))] += 1
        else:
            experts[gaps.index(max(gaps[layer] for layer in layers if experts[layer] > 1))] -= 1
    return experts


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([1, 2, 3], 10, [2, 3, 5]),  # 5/3, 10/3, 5: nothing is left over
        ([1] * 7, 10, [4, 1, 1, 1, 1, 1, 1]),  # 10/7 each: all three to one layer
        ([40, 30, 20], 10, [4, 3, 3]),  # 4.4, 3.3, 2.2: to the lightest, whatever its remainder
        ([10, 10, 10, 1], 8, [1, 3, 3, 1]),  # 2.6 and 0.3: the two too many from one layer
        ([0, 0, 5], 6, [1, 1, 4]),  # their code gives 0, 0, 6
    ],
)
def test_the_authors_rounding_by_hand(weights: list[int], total: int, expected: list[int]) -> None:
    # Would see: the residual shared out, or the ends of argmin and argmax exchanged.
    assert apportion_as_authors(weights, total).tolist() == expected


@given(st.lists(st.floats(0.01, 99), min_size=1, max_size=20, unique=True), st.integers(0, 99))
def test_the_authors_rounding_step_by_step(weights: list[float], more: int) -> None:
    total = len(weights) + more
    found = apportion_as_authors(weights, total)
    assert found.dtype == np.int64
    assert found.sum() == total
    assert found.min() >= 1
    assert found.tolist() == step_by_step(weights, total)


def test_alphas_are_taken_as_they_are(paper: dict[str, Any]) -> None:
    alpha = np.mean(paper["pl_alpha_per_projection"], axis=1)
    ours = power_map(alpha, 160, beta=2.5, normalise="none")
    assert ours.tolist() == apportion(alpha**2.5, 160).tolist()
    authors = power_map(alpha, 160, beta=2.5, normalise="none", compat="authors")
    assert authors.tolist() == step_by_step((alpha**2.5).tolist(), 160)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"total": 2}, "total of 2"),
        ({"total": 7.5}, "total is 7.5"),
        ({"scores": [1.0, np.nan, 2.0]}, "layer 1 .*finite"),
        ({"normalise": "none", "orientation": "inverse"}, "one of the two"),
        ({"normalise": "none", "scores": [1.0, -2.0, 4.0]}, "layer 1 .*negative"),
        ({"normalise": "none", "beta": 1e6}, "weights of layers 1, 2"),
    ],
)
def test_power_map_refuses(arguments: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {"scores": [1.0, 2.0, 4.0], "total": 9}
    with pytest.raises(InputError, match=says):
        power_map(**(good | arguments))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("beta", 0),
        ("beta", -1.0),
        ("beta", np.nan),
        ("beta", np.inf),
        ("orientation", "down"),
        ("on_constant", "skip"),
        ("normalise", "mean"),
        ("compat", "reference"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{option}={value!r}"):
        allocate_experts([1.0, 2.0, 4.0], 9, **{option: value})


@pytest.mark.parametrize(
    ("layers", "total", "shape", "says"),
    [
        (5, 4, (2, 4), "total of 4"),
        (0, 4, (2, 4), "one number per layer"),
        (4, 8, (2, 0, 4), "2-0-4"),
        (4, 8, (), "experts of the shape"),
    ],
)
def test_mola_refuses(layers: int, total: int, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        mola_map(layers, total, shape)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [1.0, np.nan], []])
def test_apportion_refuses(weights: list[float]) -> None:
    with pytest.raises(InputError, match="weights"):
        apportion(weights, 5)
