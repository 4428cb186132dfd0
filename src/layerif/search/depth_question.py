"""What dropping each layer or sublayer would do to the loss, asked of the model as it is.

With f what a unit adds to the residual stream and e the gradient there of the summed losses of all
tokens, leaving the unit out changes the mean loss of a token by

    slope     -mean over tokens of sum_o e_o f_o         first order: -dL/dm at m = 1 of h + m f
    diagonal  1/2 mean over tokens of sum_o e_o^2 f_o^2  second order, diagonal Fisher of the stream
    token     1/2 mean over tokens of (sum_o e_o f_o)^2  second order, of a token as a whole

One forward and one backward pass serves all units, and no weight gets a gradient. Dropping a layer
is no small change: the slope alone misleads, and what ranks layers is the slope and the diagonal
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from layerif.compress.depth.skipping import first_of, hidden_of
from layerif.compress.depth.streams import Part
from layerif.compress.depth.units import Unit, find_units
from layerif.data.batching import Batch, Encoded, collate, pack
from layerif.errors import InputError, NumericalError
from layerif.influence.gradients import frozen
from layerif.likelihood import token_losses
from layerif.model.layers import DecoderLayers
from layerif.model.modes import evaluation_mode
from layerif.model.opening import input_device

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """Numbers of each unit, in the order of the parts; NaN for what is not in the model.

    Attributes:
        slope, diagonal, token: (units,) nats a token, as the module says.
        influence: (units,) 1 - cos of the stream before and behind, the mean over tokens: block
            influence.
    """

    slope: Floats
    diagonal: Floats
    token: Floats
    influence: Floats

    @property
    def cost(self) -> Floats:
        """(units,) the predicted rise of the loss, first and second order."""
        return self.slope + self.diagonal


@dataclass(eq=False)
class _Sums:
    """Over the tokens of all batches: e.f, its square by token and by number, and 1 - cos."""

    slope: float = 0.0
    diagonal: float = 0.0
    token: float = 0.0
    turned: float = 0.0


@dataclass(eq=False)
class _Watch:
    """Hooks that follow the residual stream through a model."""

    real: torch.Tensor = field(default_factory=lambda: torch.ones(0, 0, dtype=torch.bool))
    sums: dict[str, _Sums] = field(default_factory=dict)
    before: torch.Tensor | None = None
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)

    def enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A copy, since some layers add to what they are given in place.
        self.before = hidden_of(args, kwargs).detach().clone()
        self.outputs.clear()

    def behind(self, part: Part, stream: torch.Tensor, dropped: frozenset[str]) -> None:
        """The stream behind a part; its gradient comes with the backward pass."""
        now, before = stream.detach().clone(), self.before
        assert before is not None
        self.before = now
        for unit in part.units:
            if unit.key in dropped:
                continue
            added = self.outputs.get(unit.name)
            added = now - before.to(now.device) if added is None or len(part.units) == 1 else added
            self._turned(unit, now - added, now)
            if stream.requires_grad:
                stream.register_hook(self._taker(unit, added))

    def _turned(self, unit: Unit, before: torch.Tensor, now: torch.Tensor) -> None:
        x, y = self._rows(before), self._rows(now)
        product = x.norm(dim=-1) * y.norm(dim=-1)
        cosine = (x * y).sum(-1) / product.where(product > 0, 1)
        self.sums[unit.key].turned += float((1 - cosine).sum())

    def _taker(self, unit: Unit, added: torch.Tensor) -> Any:
        def take(error: torch.Tensor) -> None:
            products = self._rows(error) * self._rows(added.to(error.device))
            sums = self.sums[unit.key]
            of_token = products.sum(1)
            sums.slope += float(of_token.sum())
            sums.diagonal += float(products.square().sum())
            sums.token += float(of_token.square().sum())

        return take

    def _rows(self, stream: torch.Tensor) -> torch.Tensor:
        """(tokens, width) float64, of the tokens that are no padding."""
        count, length = self.real.shape
        if stream.shape[:2] != (count, length):
            raise InputError(
                f"a layer's hidden states have the shape {tuple(stream.shape)} for {count} texts "
                f"of {length} tokens; texts and tokens are expected first"
            )
        return stream.flatten(2)[self.real.to(stream.device)].double()


def ask(
    model: Any,
    layers: DecoderLayers,
    parts: Sequence[Sequence[Part]],
    items: Sequence[Encoded],
    *,
    batch_tokens: int,
    dropped: frozenset[str] = frozenset(),
    backward: bool = True,
) -> Answers:
    """Ask a model, without its `dropped` units, what each of the others is worth.

    Args:
        model: the causal LM, running without the dropped units.
        layers: its decoder layers.
        parts: of each layer, as `parts_of` finds them.
        items: the texts.
        batch_tokens: tokens of a batch, padding counted.
        dropped: keys of the units that are left out.
        backward: whether gradients are taken; without, only `influence` is found.

    Raises:
        NumericalError: a loss or a number is not finite; names the unit.
    """
    units = [unit for layer in parts for part in layer for unit in part.units]
    watch = _Watch(sums={unit.key: _Sums() for unit in units})
    device, scored, tokens = input_device(model), 0, 0
    with ExitStack() as open_:
        open_.enter_context(frozen(model) if backward else evaluation_mode(model))
        open_.enter_context(nullcontext() if backward else torch.no_grad())
        for layer, own in zip(layers.modules, parts, strict=True):
            _follow(open_, watch, layer, own, dropped)
        for group in pack(items, batch_tokens, model):
            batch = collate(group, device=device)
            watch.real = _real(batch)
            losses = token_losses(model, batch)
            scored, tokens = scored + len(losses), tokens + int(watch.real.sum())
            if not bool(losses.isfinite().all()):
                raise NumericalError(
                    "the loss of the texts that layers are asked on is not finite; try "
                    "dtype='float32'"
                )
            if backward:
                losses.sum().backward()
    found = np.full((4, len(units)), np.nan)
    for row, unit in enumerate(units):
        if unit.key not in dropped:
            s = watch.sums[unit.key]
            means = (-s.slope / scored, s.diagonal / 2 / scored, s.token / 2 / scored)
            found[:, row] = *means, s.turned / tokens
            if not np.isfinite(found[:, row]).all():
                raise NumericalError(f"what {unit.key} adds is not finite; try dtype='float32'")
    return Answers(*found)


def ask_layers(
    model: Any, layers: DecoderLayers, items: Sequence[Encoded], *, batch_tokens: int
) -> Answers:
    """Ask the whole model what each of its layers is worth, as `ask` does."""
    parts = [[Part([unit])] for unit in find_units(layers, "layer")]
    return ask(model, layers, parts, items, batch_tokens=batch_tokens)


def _follow(
    hooks: ExitStack,
    watch: _Watch,
    layer: nn.Module,
    parts: Sequence[Part],
    dropped: frozenset[str],
) -> None:
    hooks.enter_context(layer.register_forward_pre_hook(watch.enter, with_kwargs=True))
    for part in parts:
        for unit in part.units if len(part.units) > 1 else ():
            hooks.enter_context(unit.module.register_forward_hook(_output_of(watch, unit)))
        if part.reader is None:
            hooks.enter_context(layer.register_forward_hook(_behind_layer(watch, part, dropped)))
        else:
            read = _before_reader(watch, part, dropped)
            hooks.enter_context(part.reader.register_forward_pre_hook(read, with_kwargs=True))


def _output_of(watch: _Watch, unit: Unit) -> Any:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        watch.outputs[unit.name] = first_of(output).detach().clone()

    return keep


def _behind_layer(watch: _Watch, part: Part, dropped: frozenset[str]) -> Any:
    def behind(_module: nn.Module, _args: Any, output: Any) -> None:
        watch.behind(part, first_of(output), dropped)

    return behind


def _before_reader(watch: _Watch, part: Part, dropped: frozenset[str]) -> Any:
    def read(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch.behind(part, args[0] if args else next(iter(kwargs.values())), dropped)

    return read


def _real(batch: Batch) -> torch.Tensor:
    """(B, T) bool, true where a token is no padding."""
    real = torch.zeros_like(batch.predicts)
    for row, item in enumerate(batch.items):
        real[row, : len(item.input_ids)] = True
    return real
