"""The rank of a plain LoRA that equals a plan of experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from layerif.errors import InputError
from layerif.plans.maps.counts import equal_rank, equal_ranks


def test_layer_by_layer_and_in_all() -> None:
    assert equal_ranks([1, 3, 4], 8).tolist() == [8, 24, 32]
    assert equal_ranks([1, 3, 4], [2, 4, 1]).tolist() == [2, 12, 4]
    assert equal_ranks([1, 3], 8).dtype == np.int64
    assert equal_rank([1, 3, 4], 8) == 21  # of 64 / 3
    assert equal_rank([1, 3, 5], 8) == 24  # exactly
    assert equal_rank([5] * 32, 8) == 40  # LayerIF's T = 160 on 32 layers


@pytest.mark.parametrize(
    ("experts", "rank", "says"),
    [
        ([1, 0], 8, "experts of layer 1 .* 0"),
        ([2, -1], 8, "experts of layer 1 .*-1"),
        ([1.5, 2], 8, "experts of layer 0 .*1.5"),
        ([1, 2], 0, "rank is 0"),
        ([1, 2], 1.5, "rank is 1.5"),
        ([1, 2], [1, 0.5], "ranks of layer 1 .*0.5"),
        ([1, 2], [1, 2, 3], "3 ranks"),
    ],
)
def test_refuses(experts: Any, rank: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        equal_rank(experts, rank)
