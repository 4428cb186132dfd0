"""A forward pass that begins at a decoder layer, from hidden states that were kept.

The model itself runs: what it does before, between and after its layers (masks, positions, norms,
head) stays its own. The layers below are not computed; the uppermost of them hands on what was
kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import nn

from layerif.data.batching import Batch
from layerif.likelihood import row_sums, token_losses
from layerif.model.layers import DecoderLayers
from layerif.model.modes import replaced_forwards


class PartialForward:
    """Losses of batches from any decoder layer upwards.

    Args:
        model: a causal LM of transformers, in evaluation mode.
        layers: its decoder layers.
    """

    def __init__(self, model: Any, layers: DecoderLayers) -> None:
        self._model = model
        self._layers = layers
        self._tuples: list[bool] = []

    @torch.no_grad()
    def whole(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(B,) summed nats of each row, and what each layer gets: (B, T, hidden) each."""
        inputs: list[torch.Tensor] = []
        tuples: list[bool] = []

        def see(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            inputs.append(args[0] if args else kwargs["hidden_states"])
            tuples.append(isinstance(output, tuple | list))

        with ExitStack() as hooks:
            for module in self._layers.modules:
                hooks.enter_context(module.register_forward_hook(see, with_kwargs=True))
            nats = row_sums(token_losses(self._model, batch).double(), batch)
        self._tuples = tuples
        return nats, inputs

    def upwards(self, batch: Batch, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """(B,) summed nats of each row, with `hidden` as what `layer` gets.

        Where gradients are wanted, they go as far down as `layer`. `whole` has to have run before.
        """
        if layer == 0:
            return row_sums(token_losses(self._model, batch).double(), batch)
        with _skipped(self._layers.modules[:layer], hidden, self._tuples):
            return row_sums(token_losses(self._model, batch).double(), batch)


def _skipped(
    modules: Sequence[nn.Module], hidden: torch.Tensor, tuples: Sequence[bool]
) -> AbstractContextManager[None]:
    """Modules that compute nothing and return `hidden`, in the form in which they return it."""
    return replaced_forwards(
        modules,
        lambda place, _forward: (
            lambda *_args, **_kwargs: (hidden, None) if tuples[place] else hidden
        ),
    )
