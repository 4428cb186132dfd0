"""Engines by name: those of this package, and any that a user registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.export.base import Export

EXPORTS: Registry[Export] = Registry.of(
    __package__,
    "export",
    "llamacpp gptqmodel llmcompressor autoround torchao mlx mlx_sensitivities peft mergekit",
)
register_export = EXPORTS.register
