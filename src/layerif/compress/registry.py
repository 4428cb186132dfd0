"""Compressors by the kind of plan that they spend: those of this package, and a user's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.compress.compressor import Held

COMPRESSORS: Registry[Held] = Registry(
    "compressor",
    {
        "sparsity": "layerif.compress.pruning.compressor:PruningCompressor.held",
        "bits": "layerif.compress.quantization.compressor:QuantizationCompressor.held",
    },
)
# Of a kind of plan that has none yet: what holds a model, as `PruningCompressor.held` does.
register_compressor = COMPRESSORS.register
