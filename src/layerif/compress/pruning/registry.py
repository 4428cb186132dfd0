"""Pruners by name: those of this package, and any that a user registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.compress.pruning.base import Pruner

_HERE = "layerif.compress.pruning"

PRUNERS: Registry[Pruner] = Registry(
    "pruner",
    {
        "magnitude": f"{_HERE}.magnitude:MAGNITUDE",
        "wanda": f"{_HERE}.wanda:WANDA",
        "sparsegpt": f"{_HERE}.sparsegpt:SPARSEGPT",
    },
)


def register_pruner(name: str, pruner: Pruner) -> None:
    """Give a pruner a name: `prune(..., method=name)` then uses it.

    Raises:
        InputError: the name is taken.
    """
    PRUNERS.register(name, pruner)


def reads_text(name: str) -> bool:
    """Whether a pruner takes statistics from calibration text."""
    return PRUNERS.find(name).statistics is not None
