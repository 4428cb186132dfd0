"""Pruners by name: those of this package, and any that a user registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.compress.pruning.base import Pruner

_HERE = "layerif.compress.pruning"

PRUNERS: Registry[Pruner] = Registry(
    "pruning method",
    {
        "magnitude": f"{_HERE}.magnitude:MAGNITUDE",
        "wanda": f"{_HERE}.wanda:WANDA",
        "sparsegpt": f"{_HERE}.sparsegpt:SPARSEGPT",
    },
)


def register_pruner(name: str, pruner: Pruner) -> None:
    """Give a pruner a name: `prune(..., method=name)` and searches then use it.

    Raises:
        InputError: the name is taken.
    """
    PRUNERS.register(name, pruner)
