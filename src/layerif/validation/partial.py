"""Losses of texts by a forward pass that begins at a decoder layer, from hidden states kept before.

The model itself runs: what it does before, between and after its layers (masks, positions, norms,
head) stays its own. The layers below are not computed; the uppermost of them hands on what was
kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from layerif.data.batching import Batch, Encoded, collate, pack
from layerif.errors import NumericalError
from layerif.likelihood import row_sums, token_losses
from layerif.model.layers import DecoderLayers
from layerif.model.modes import replaced_forwards
from layerif.model.opening import input_device


class Rows:
    """Texts in batches of similar length, and their losses in the order of the texts.

    Args:
        items: the texts, each with an index of its own.
        batch_tokens: tokens of a batch, padding counted.
        model: what they are for, and where they lie.
        what: one of the texts, in words.
        advice: what to try, beside float32, where a loss is not finite.

    Attributes:
        batches: all texts, in another order.
        tokens: how many are scored.
    """

    def __init__(
        self, items: Sequence[Encoded], batch_tokens: int, model: Any, what: str, advice: str = ""
    ) -> None:
        groups, device = pack(items, batch_tokens, model), input_device(model)
        self.batches: list[Batch] = [collate(group, device=device) for group in groups]
        place = {item.index: row for row, item in enumerate(items)}
        self._order = torch.tensor([place[item.index] for group in groups for item in group])
        self._scored = torch.tensor([item.scored for item in items], dtype=torch.float64)
        self.tokens = int(self._scored.sum())
        self._what, self._advice = what, advice

    def __len__(self) -> int:
        return len(self._scored)

    def means(self, nats: Sequence[torch.Tensor], when: str) -> torch.Tensor:
        """(texts,) float64 nats a scored token.

        Args:
            nats: summed, of each batch (B,).
            when: what the model was like, in words.

        Raises:
            NumericalError: one is not finite; names the text.
        """
        means = torch.empty_like(self._scored)
        means[self._order] = torch.cat([each.double().cpu() for each in nats])
        means /= self._scored
        for row, loss in enumerate(means.tolist()):
            if not math.isfinite(loss):
                raise NumericalError(
                    f"the loss of {self._what} {row} {when} is {loss}; stopped (try "
                    f"dtype='float32'{self._advice})"
                )
        return means


class PartialForward:
    """Losses of batches from any decoder layer upwards.

    Args:
        model: a causal LM of transformers, in evaluation mode.
        layers: its decoder layers.
    """

    def __init__(self, model: Any, layers: DecoderLayers) -> None:
        self.model, self.layers = model, layers
        self._tuples: list[bool] = []

    @torch.no_grad()
    def whole(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(B,) summed nats of each row, and what each layer gets: (B, T, hidden) each."""
        inputs: list[torch.Tensor] = []
        self._tuples = []

        def see(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            inputs.append(args[0] if args else kwargs["hidden_states"])
            self._tuples.append(isinstance(output, tuple | list))

        with ExitStack() as hooks:
            for module in self.layers.modules:
                hooks.enter_context(module.register_forward_hook(see, with_kwargs=True))
            return self._nats(batch), inputs

    def upwards(self, batch: Batch, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """(B,) summed nats of each row, with `hidden` as what `layer` gets.

        Where gradients are wanted, they go as far down as `layer`. `whole` has to have run before.
        """
        # The layers below return it, in the form in which each returned its own.
        with replaced_forwards(
            self.layers.modules[:layer],
            lambda place, _forward: (
                lambda *_args, **_kwargs: (hidden, None) if self._tuples[place] else hidden
            ),
        ):
            return self._nats(batch)

    def _nats(self, batch: Batch) -> torch.Tensor:
        return row_sums(token_losses(self.model, batch).double(), batch)
