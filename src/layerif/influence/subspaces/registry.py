"""Subspaces by name: those of this package, and any that a user registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.influence.subspaces.base import Subspace, SubspaceKind

_HERE = "layerif.influence.subspaces"

SUBSPACES: Registry[SubspaceKind] = Registry(
    "subspace",
    {
        "fresh_lora": f"{_HERE}.lora:FRESH_LORA",
        "two_sided": f"{_HERE}.projected:TWO_SIDED",
        "full": f"{_HERE}.full:FULL",
        "adapter": f"{_HERE}.adapter:ADAPTER",
    },
    objects=True,
)


def subspace_kind(subspace: str | Subspace) -> SubspaceKind:
    """The subspace of a name, or one that is given as an object.

    Raises:
        InputError: there is no such subspace.
    """
    if isinstance(subspace, str):
        return SUBSPACES.find(subspace)
    from layerif.influence.subspaces.base import SubspaceKind

    formed = getattr(subspace, "formed", True)
    return SubspaceKind(lambda _model, _options: subspace, formed=formed)


def register_subspace(name: str, kind: SubspaceKind) -> None:
    """Give a subspace a name: `score(..., subspace=name)` then uses it.

    Raises:
        InputError: the name is taken.
    """
    SUBSPACES.register(name, kind)
