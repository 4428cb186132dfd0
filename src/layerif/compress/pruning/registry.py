"""Pruners by name: those of this package, and any that a user registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.compress.pruning.base import Pruner

PRUNERS: Registry[Pruner] = Registry.of(__package__, "pruner", "magnitude wanda sparsegpt")
register_pruner = PRUNERS.register


def reads_text(name: str) -> bool:
    """Whether a pruner takes statistics from calibration text."""
    return PRUNERS.find(name).statistics is not None
