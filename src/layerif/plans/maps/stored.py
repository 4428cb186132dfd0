"""What weights of few bits take on disk: the bytes of one projection."""

from __future__ import annotations

from typing import Protocol

# Bits at which a weight is left as it is.
WHOLE = 16
# Of a scale.
SCALE_BYTES = 2


class Grouping(Protocol):
    """How the weights of a row share their scales."""

    @property
    def group_size(self) -> int:
        """Inputs that share a scale; 0 for the whole row."""

    @property
    def symmetric(self) -> bool:
        """Whether there is no zero point."""

    @property
    def offset(self) -> str:
        """What there is otherwise: `zero_point`, or `minimum` in 16 bits."""


def groups_of(in_features: int, group_size: int) -> int:
    """How many groups a row has; the last may be shorter than the others."""
    return -(-in_features // group_size) if group_size else 1


def stored_bytes(out_features: int, in_features: int, bits: int, grid: Grouping) -> int:
    """Bytes of one projection: codes of `bits` bits, and of each group a scale and a zero point.

    A scale takes two bytes, a zero point `bits` bits, a minimum in its place two bytes, and neither
    is there where the grid is symmetric. Codes and zero points are packed without gaps, each into
    whole bytes. With 16 bits a weight takes two bytes, and nothing else is stored.
    """
    numel = out_features * in_features
    if bits == WHOLE:
        return 2 * numel
    groups = out_features * groups_of(in_features, grid.group_size)
    each = 0 if grid.symmetric else 8 * SCALE_BYTES if grid.offset == "minimum" else bits
    return -(-numel * bits // 8) + SCALE_BYTES * groups + -(-groups * each // 8)
