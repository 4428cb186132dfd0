"""Wanda's choice against brute force, with exact counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerif.compress.pruning.wanda import wanda_mask


def brute_force(weight, norms, sparsity):
    """Row by row, one weight at a time, the least saliency first; then the cheapest extra ones."""
    rows, columns = weight.shape
    each, extra = divmod(round(sparsity * (rows * columns)), rows)
    saliency = [
        [
            abs(weight[i, j].item()) * norms[j].item() if weight[i, j] else -1.0
            for j in range(columns)
        ]
        for i in range(rows)
    ]
    gone = set()
    following = []
    for i in range(rows):
        order = sorted(range(columns), key=lambda j, i=i: (saliency[i][j], j))
        gone |= {(i, j) for j in order[:each]}
        if each < columns:
            following.append((saliency[i][order[each]], i, order[each]))
    gone |= {(i, j) for _, i, j in sorted(following)[:extra]}
    return gone


# Few distinct values, as in a quantised model, so that ties and zeros abound.
values = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])


@settings(deadline=None)
@given(data=st.data(), rows=st.integers(1, 6), columns=st.integers(1, 8), share=st.floats(0, 1))
def test_equals_brute_force(data, rows, columns, share):
    cells = st.lists(values, min_size=rows * columns, max_size=rows * columns)
    weight = torch.tensor(data.draw(cells), dtype=torch.float64).view(rows, columns)
    norms = torch.tensor(
        data.draw(
            st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=columns, max_size=columns)
        ),
        dtype=torch.float64,
    )
    mask = wanda_mask(weight, norms, share)
    assert {(i, j) for i, j in mask.nonzero().tolist()} == brute_force(weight, norms, share)


@settings(deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), share=st.floats(0, 1))
def test_the_count_is_exact_and_rows_differ_by_at_most_one(rows, columns, share):
    generator = torch.Generator().manual_seed(rows * 41 + columns)
    weight = torch.randn(rows, columns, generator=generator)
    mask = wanda_mask(weight, torch.ones(columns), share)
    counts = mask.sum(1)
    assert counts.sum() == round(share * (rows * columns))
    assert counts.max() - counts.min() <= 1


def test_odd_ratios_do_not_lose_the_remainder():
    # Each of 576 rows rounded down alike would fall 268 weights short at this sparsity.
    weight = torch.randn(576, 576, generator=torch.Generator().manual_seed(0))
    assert wanda_mask(weight, torch.ones(576), 0.4713).sum() == round(0.4713 * (576 * 576))


def test_weights_already_zero_go_first_and_count():
    weight = torch.tensor([[0.0, 5.0, 0.0, 4.0], [3.0, 0.0, 2.0, 1.0]])
    mask = wanda_mask(weight, torch.tensor([100.0, 0.1, 100.0, 0.1]), 0.5)
    assert mask.tolist() == [[True, False, True, False], [False, True, False, True]]


def test_zeros_come_before_weights_of_dead_features():
    """Both have saliency 0; by column order alone this would leave three zeros and not two."""
    weight = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    mask = wanda_mask(weight, torch.tensor([0.0, 1.0]), 0.5)
    assert int((weight.masked_fill(mask, 0) == 0).sum()) == 2


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_and_everything_are_legal(sparsity):
    mask = wanda_mask(torch.ones(3, 5), torch.ones(5), sparsity)
    assert mask.all() if sparsity else not mask.any()


def test_low_precision_weights_are_ranked_in_float32():
    """In bfloat16 the products 1.0 * 1.001 and 1.0 * 1.0 would tie, and the lower column go."""
    weight = torch.ones(1, 2, dtype=torch.bfloat16)
    mask = wanda_mask(weight, torch.tensor([1.001, 1.0]), 0.5)
    assert mask.tolist() == [[False, True]]
