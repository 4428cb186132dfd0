"""Ranks of plain LoRA beside a plan of experts, so that the two have the same ranks in all.

Ranks from scores come by the maps of experts: whole numbers of at least 1 with an exact total.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from layerif.errors import InputError
from layerif.plans.maps.counts import IntArray, check_count
from layerif.plans.maps.experts import check_experts


def equal_ranks(experts: ArrayLike, rank: int | ArrayLike) -> IntArray:
    """The rank of a plain LoRA in each layer that equals that of its experts together, n_l r.

    Args:
        experts: n, shape (layers,).
        rank: r of each expert: one number, or shape (layers,).

    Returns:
        int64, shape (layers,).

    Raises:
        InputError: not whole numbers of at least 1, or not as many ranks as layers.
    """
    counts = check_experts(experts)
    if np.ndim(rank) == 0:
        return counts * check_count(rank, "rank")  # type: ignore[arg-type]  # or it says so
    ranks = check_experts(rank, name="ranks")
    if ranks.size != counts.size:
        raise InputError(
            f"there are {ranks.size} ranks for {counts.size} layers; give one for each, or one "
            "number for all"
        )
    return counts * ranks


def equal_rank(experts: ArrayLike, rank: int | ArrayLike) -> int:
    """The rank, one for all layers, of a plain LoRA of equal total rank: round(sum_l n_l r / L).

    The baseline that a mixture of LoRA experts has to beat; the total is exact where L divides it.

    Raises:
        InputError: as `equal_ranks`.
    """
    ranks = equal_ranks(experts, rank)
    return round(int(ranks.sum()) / ranks.size)
