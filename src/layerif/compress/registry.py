"""Compressors by the kind of plan that they spend: those of this package, and a user's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.compress.compressor import Held

COMPRESSORS: Registry[Held] = Registry(
    "compressor", {"sparsity": "layerif.compress.pruning.compressor:PruningCompressor.held"}
)


def register_compressor(kind: str, held: Held) -> None:
    """Let searches of a kind of plan compress a model.

    Args:
        kind: of plan, which has no compressor yet.
        held: holds a model, as `PruningCompressor.held` does.

    Raises:
        InputError: the kind has one.
    """
    COMPRESSORS.register(kind, held)
