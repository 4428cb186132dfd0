"""Which values are the smallest: exact counts and fixed ties, without sorting.

A threshold is found by partition (a selection in linear time), and only values equal to it are
told apart by their position.
"""

from __future__ import annotations

import numpy as np
import torch

from layerif.compress.pruning.targets import Pattern


def smallest(values: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` smallest of all values; among equal ones the first in memory order of (out, in).

    Args:
        values: of any shape, finite.
        count: 0 to all of them.

    Returns:
        bool of that shape, true for exactly `count` values.
    """
    return smallest_by_row(values.reshape(1, -1), count).view(values.shape)


def smallest_by_row(values: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` smallest values spread evenly over rows, which differ by at most one.

    Every row gives its floor(count / rows) smallest, the lower column first among equals. The rows
    that give one more are those whose next value is least, the lower row first.

    Args:
        values: (rows, columns), finite.
        count: 0 to all of them.

    Returns:
        (rows, columns) bool, true for exactly `count` values.
    """
    rows, columns = values.shape
    each, extra = divmod(count, rows)
    if each == columns:
        return torch.ones_like(values, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    # The next value of each row: what is smaller goes, what is equal goes by position.
    select = by_partition if values.device.type == "cpu" else by_kthvalue
    threshold = select(values, each)
    chosen = values < threshold
    missing = each - chosen.sum(1, keepdim=True)
    level = values == threshold
    if bool((level.sum(1, keepdim=True) == missing + 1).all()) and not missing.any():
        following = level
    else:
        place = level.cumsum(1)
        chosen |= level & (place <= missing)
        following = level & (place == missing + 1)
    if extra:
        more = torch.zeros(rows, 1, dtype=torch.bool, device=values.device)
        more[threshold[:, 0].argsort(stable=True)[:extra]] = True
        chosen |= following & more
    return chosen


def group_mask(values: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """(rows, columns) bool: of every group in a row the smallest values, all but N.

    Among equal values the lower column goes first.

    Args:
        values: (rows, columns), the columns a multiple of M.
    """
    size, count = pattern.group, pattern.group - pattern.keep
    groups = values.reshape(-1, size)
    if size > 32:
        order = groups.argsort(dim=1, stable=True)[:, :count]
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True)
        return chosen.view(values.shape)
    # Ranks by comparing every pair, which for small groups is far less than sorting them.
    members = [member.contiguous() for member in groups.unbind(1)]
    ranks = [torch.zeros_like(members[0], dtype=torch.int8) for _ in members]
    for later in range(1, size):
        for earlier in range(later):
            before = members[earlier] <= members[later]
            ranks[later] += before
            ranks[earlier] += ~before
    return torch.stack([rank < count for rank in ranks], dim=1).view(values.shape)


def by_partition(values: torch.Tensor, k: int) -> torch.Tensor:
    """(rows, 1) the value at place k, from 0, of each row in order; of values on the CPU.

    Several times as fast as torch's own selection, which carries indices along.
    """
    parts = np.partition(values.numpy(), k, axis=1)[:, k : k + 1]
    return torch.from_numpy(np.ascontiguousarray(parts))


def by_kthvalue(values: torch.Tensor, k: int) -> torch.Tensor:
    """As `by_partition`, on any device."""
    return values.kthvalue(k + 1, dim=1, keepdim=True).values
