"""Kinds of plan by name: those of this package, and any that a user registers."""

from __future__ import annotations

from layerif.core.registry import Registry
from layerif.plans.kinds.base import PlanKind

KINDS: Registry[PlanKind] = Registry.of(
    __package__, "plan kind", "sparsity experts ranks bits depth"
)


def register_kind(kind: PlanKind) -> None:
    """Make a kind of plan known to `allocate` and to plans in files.

    Raises:
        InputError: the name is taken.
    """
    KINDS.register(kind.name, kind)
