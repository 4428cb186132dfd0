"""Pruners by name: those of this package, and any that a user registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.compress.pruning.base import Pruner

# Of the default, so that a recipe is written without importing it.
FACTS = {"wanda": {"reads_text": True}}
PRUNERS: Registry[Pruner] = Registry.of(
    __package__, "pruner", "magnitude wanda sparsegpt", facts=FACTS
)
register_pruner = PRUNERS.register


def reads_text(name: str) -> bool:
    """Whether a pruner takes statistics from calibration text."""
    reads: bool = PRUNERS.fact(name, "reads_text", lambda entry: entry.statistics is not None)
    return reads
