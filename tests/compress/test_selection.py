"""Masks without sorting, magnitude and N:M, against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerif.compress.pruning.magnitude import magnitude_mask
from layerif.compress.pruning.selection import (
    by_kthvalue,
    by_partition,
    group_mask,
    smallest,
    smallest_by_row,
)
from layerif.compress.pruning.targets import Pattern, Target, nearest_counts
from layerif.errors import InputError

# Few distinct values, so that ties abound.
few = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])


def matrix(data, rows, columns, values=few):
    cells = st.lists(values, min_size=rows * columns, max_size=rows * columns)
    return torch.tensor(data.draw(cells), dtype=torch.float32).view(rows, columns)


def cells_of(mask):
    return {tuple(cell) for cell in mask.nonzero().tolist()}


@settings(deadline=None)
@given(data=st.data(), rows=st.integers(1, 5), columns=st.integers(1, 9))
def test_the_smallest_of_all_with_ties_by_position(data, rows, columns):
    values = matrix(data, rows, columns)
    count = data.draw(st.integers(0, values.numel()))
    order = sorted((values[i, j].item(), i, j) for i in range(rows) for j in range(columns))
    assert cells_of(smallest(values, count)) == {(i, j) for _, i, j in order[:count]}


@settings(deadline=None)
@given(data=st.data(), rows=st.integers(1, 5), columns=st.integers(1, 9))
def test_the_smallest_by_row_equal_a_stable_sort(data, rows, columns):
    """The sort that this replaces, kept here as the oracle."""
    values = matrix(data, rows, columns)
    count = data.draw(st.integers(0, values.numel()))
    each, extra = divmod(count, rows)
    order = values.argsort(dim=1, stable=True)
    expected = torch.zeros_like(values, dtype=torch.bool)
    expected.scatter_(1, order[:, :each], True)
    if extra:
        following = order[:, each]
        chosen = values.gather(1, following[:, None])[:, 0].argsort(stable=True)[:extra]
        expected[chosen, following[chosen]] = True
    assert torch.equal(smallest_by_row(values, count), expected)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 33])
@settings(deadline=None, max_examples=30)
@given(data=st.data(), rows=st.integers(1, 4), groups=st.integers(1, 4))
def test_the_smallest_of_every_group(size, data, rows, groups):
    values = matrix(data, rows, groups * size)
    count = data.draw(st.integers(0, size))
    expected = set()
    for i in range(rows):
        for g in range(groups):
            order = sorted(range(g * size, (g + 1) * size), key=lambda j, i=i: (values[i, j], j))
            expected |= {(i, j) for j in order[:count]}
    assert cells_of(group_mask(values, Pattern(size - count, size))) == expected


@pytest.mark.parametrize("k", [0, 5, 39])
def test_both_selections_find_the_value_at_a_place(k):
    """NumPy's, which the CPU takes, and torch's, which other devices take."""
    values = torch.randint(0, 9, (7, 40), generator=torch.Generator().manual_seed(1)).float()
    expected = values.sort(dim=1).values[:, k : k + 1]
    assert torch.equal(by_partition(values, k), expected)
    assert torch.equal(by_kthvalue(values, k), expected)


@settings(deadline=None)
@given(data=st.data(), rows=st.integers(1, 4), columns=st.integers(1, 8), share=st.floats(0, 1))
def test_magnitude_equals_brute_force(data, rows, columns, share):
    weight = matrix(data, rows, columns)
    zeros = round(share * weight.numel())
    order = sorted((abs(weight[i, j].item()), i, j) for i in range(rows) for j in range(columns))
    mask = magnitude_mask(weight, Target(zeros))
    assert cells_of(mask) == {(i, j) for _, i, j in order[:zeros]}
    by_groups = magnitude_mask(weight, Target(rows * columns, Pattern(0, columns)))
    assert by_groups.all()


def test_two_of_four_keeps_the_larger_two():
    saliency = torch.tensor([[4.0, 1.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]])
    mask = group_mask(saliency, Pattern.parse("2:4"))
    assert mask.tolist() == [[False, True, False, True, True, True, False, False]]


@pytest.mark.parametrize("text", ["", "2", "4:2", "2:0", "a:b", "2:4:8", "-1:4"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(InputError, match="N:M"):
        Pattern.parse(text)


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(
        st.tuples(st.integers(0, 80).map(lambda n: n / 20), st.sampled_from([1, 2, 3, 7])),
        min_size=1,
        max_size=7,
    )
)
def test_counts_come_as_near_to_the_total_as_roundings_can(parts):
    wanted, sizes = [value for value, _ in parts], [size for _, size in parts]
    found = nearest_counts(wanted, sizes)
    assert all(abs(count - value) < 1 + 1e-5 for count, value in zip(found, wanted, strict=True))
    target = sum(value * size for value, size in parts)

    def distance(counts):
        return abs(sum(c * s for c, s in zip(counts, sizes, strict=True)) - target)

    best = float("inf")
    for choice in range(2 ** len(parts)):
        counts = [int(v) + (choice >> i & 1) * (v > int(v)) for i, v in enumerate(wanted)]
        best = min(best, distance(counts))
    assert distance(found) <= best + 1e-4


def test_whole_numbers_stay_and_the_nearest_is_taken_where_the_total_leaves_it_open():
    assert nearest_counts([2.0, 2.0, 1 / 3 * 3], [5, 7, 9]) == [2, 2, 1]
    assert nearest_counts([1.9, 1.1], [1, 1]) == [2, 1]
    assert nearest_counts([1.4, 1.4, 1.2], [1, 1, 1]) in ([2, 1, 1], [1, 2, 1])
    # Sizes of real models, and more of them than can be tried one by one.
    sizes = [4096 * 4096 // 4, 4096 * 11008 // 4] * 100
    wanted = [4 * (0.3 + 0.002 * i) for i in range(200)]
    found = nearest_counts(wanted, sizes)
    total = sum(v * s for v, s in zip(wanted, sizes, strict=True))
    reached = sum(c * s for c, s in zip(found, sizes, strict=True))
    assert abs(reached - total) <= 1024 * 256  # half the greatest common divisor of the sizes
