"""Quantisation as a compressor: a level is a projection's number of bits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import torch

from layerif.compress.held import HeldModel
from layerif.compress.quantization.options import GridOptions
from layerif.compress.quantization.registry import QUANTIZERS
from layerif.core.options import Options
from layerif.model.layers import DecoderLayers, Projection, refuse_quantised


class QuantizationCompressor(HeldModel):
    """A model rounded from its original weights to any numbers of bits, as `quantize` would."""

    @classmethod
    def held(
        cls,
        model: Any,
        layers: DecoderLayers,
        batches: Sequence[dict[str, torch.Tensor]],
        options: Options,
    ) -> AbstractContextManager[Self]:
        """The weights of a model are free to change inside, and as before afterwards.

        Args:
            options: among them those of `GridOptions`; what they leave out is by default.

        Raises:
            InputError: there is no such method, or a weight is quantised already.
        """
        refuse_coded(layers.projections)
        grid = options.part(GridOptions)
        quantizer = QUANTIZERS.find(grid.method)

        def made(projection: Projection, original: torch.Tensor, statistics: Any) -> Any:
            return quantizer.quantizable(projection, original, statistics, grid)

        return cls.by(model, layers, batches, quantizer.statistics(grid), made)


def refuse_coded(projections: Sequence[Projection]) -> None:
    """Refuse weights that are quantised already.

    Raises:
        InputError: there is one; names its projection.
    """
    refuse_quantised(
        projections,
        "so it cannot be rounded again; quantise the model as it was before",
    )
