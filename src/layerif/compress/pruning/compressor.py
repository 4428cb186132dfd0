"""Pruning as a compressor: a level is the number of zeros of a projection."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import torch

from layerif.compress.held import HeldModel
from layerif.compress.pruning.registry import PRUNERS
from layerif.compress.pruning.saving import refuse_packed
from layerif.model.layers import DecoderLayers


class PruningCompressor(HeldModel):
    """A model pruned from its original weights to any numbers of zeros, as `prune` would."""

    @classmethod
    def held(
        cls,
        model: Any,
        layers: DecoderLayers,
        batches: Sequence[dict[str, torch.Tensor]],
        options: Any,
    ) -> AbstractContextManager[Self]:
        """The weights of a model are free to change inside, and as before afterwards.

        Args:
            options: with the pruner's name as `method`.

        Raises:
            InputError: there is no such method, or a weight is quantised.
        """
        refuse_packed(layers.projections)
        pruner = PRUNERS.find(options.method)
        return cls.by(model, layers, batches, pruner.statistics, pruner.prunable)
