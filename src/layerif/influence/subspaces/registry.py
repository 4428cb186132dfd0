"""Subspaces by name: those of this package, and any that a user registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.influence.subspaces.base import Subspace, SubspaceKind

SUBSPACES: Registry[SubspaceKind] = Registry.of(
    __package__, "subspace", "lora:fresh_lora projected:two_sided full adapter", objects=True
)
register_subspace = SUBSPACES.register


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
