"""Quantisers by name: those of this package, and any that a user registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.compress.quantization.base import Quantizer

QUANTIZERS: Registry[Quantizer] = Registry.of(__package__, "quantizer", "rtn gptq")
register_quantizer = QUANTIZERS.register
