"""One walk through the decoder layers, each seen with the inputs that the layers below give it.

The model's own forward pass says how each layer is called: positional and keyword arguments are
captured, not assumed (attention masks and position embeddings differ from layer to layer in some
architectures). Then layer after layer runs on the hidden states of all batches, which are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layerif.batching import accepted
from layerif.errors import InputError
from layerif.model import DecoderLayers


@dataclass
class _Call:
    """How the model called one decoder layer, the hidden states left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Stop(Exception):
    """Ends a forward pass once the first layer's input is known."""


@dataclass
class Visit:
    """One decoder layer during the walk.

    Attributes:
        index: which layer.
        module: the layer itself; what is changed in it before the walk goes on, the layers above
            see.
    """

    index: int
    module: nn.Module
    _hidden: list[torch.Tensor]
    _calls: list[_Call]
    _once: bool = False
    _handed_on: int = 0

    @property
    def inputs(self) -> Sequence[torch.Tensor]:
        """The hidden states that the layer is given, a tensor a batch.

        In a walk through unchanged layers `run` puts an output in the place of each once it has
        gone by: take both together.
        """
        return self._hidden

    @torch.no_grad()
    def run(self) -> Iterator[torch.Tensor]:
        """The layer's output for each batch, from the layer as it is now.

        Raises:
            InputError: the walk is through unchanged layers, and this one was run already.
        """
        if self._handed_on:
            raise InputError(
                f"layer {self.index} was run already; in a walk through unchanged layers each is "
                "run once, so observe all that is needed at the same time"
            )
        for batch in range(len(self._hidden)):
            output = self._output(batch)
            yield output
            if self._once:
                self._hidden[batch] = output
                self._handed_on = batch + 1

    @torch.no_grad()
    def _output(self, batch: int) -> torch.Tensor:
        call = self._calls[batch]
        output = self.module(self._hidden[batch], *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def _hand_on(self) -> None:
        """Make the next layer's inputs of what is not yet handed on."""
        for batch in range(self._handed_on, len(self._hidden)):
            self._hidden[batch] = self._output(batch)


@torch.no_grad()
def walk(
    model: Any,
    layers: DecoderLayers,
    batches: Sequence[dict[str, torch.Tensor]],
    *,
    unchanged: bool = False,
) -> Iterator[Visit]:
    """Visit the decoder layers from the bottom up.

    The caller may run the layer to observe it (`visit.run()`), and change its weights; the next
    layer's inputs are made after that, from the changed layer.

    Args:
        batches: input_ids, attention_mask and position_ids of each batch. The hidden states of all
            of them are kept: tokens x hidden size x bytes a number.
        unchanged: the layers stay as they are, so that what the caller's run of a layer gives is
            handed on, and no layer runs twice.
    """
    hidden, calls = _capture(model, layers, batches)
    last = len(layers) - 1
    for index, module in enumerate(layers.modules):
        visit = Visit(index, module, hidden, [call[index] for call in calls], unchanged)
        yield visit
        if index != last:
            visit._hand_on()


def _capture(
    model: Any, layers: DecoderLayers, batches: Sequence[dict[str, torch.Tensor]]
) -> tuple[list[torch.Tensor], list[list[_Call]]]:
    """Inputs of the first layer, and the calls of all layers, for each batch.

    Calls that come out the same for two batches of one shape do not depend on the tokens, so they
    hold for every other batch of that shape, whose forward pass then stops at the first layer.
    """
    hidden: list[torch.Tensor] = []
    calls: list[list[_Call]] = []
    seen: dict[tuple[int, ...], list[list[_Call]]] = {}
    for inputs in batches:
        known = seen.setdefault(tuple(inputs["input_ids"].shape), [])
        settled = len(known) == 2 and _same(known[0], known[1])
        first, captured = _observe(model, layers, inputs, first_only=settled)
        hidden.append(first)
        if settled:
            calls.append(known[0])
        else:
            calls.append(captured)
            if len(known) < 2:
                known.append(captured)
    return hidden, calls


def _observe(
    model: Any, layers: DecoderLayers, inputs: dict[str, torch.Tensor], *, first_only: bool
) -> tuple[torch.Tensor, list[_Call]]:
    first: list[torch.Tensor] = []
    calls: list[_Call] = []

    def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        if not first:
            first.append(hidden)
            if first_only:
                raise _Stop
        calls.append(_Call(rest, kwargs))

    handles = [
        module.register_forward_pre_hook(record, with_kwargs=True) for module in layers.modules
    ]
    try:
        # The decoder without its head: no logits are needed here.
        decoder = model.base_model
        decoder(**accepted(decoder.forward, inputs), use_cache=False)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return first[0], calls


def _same(a: Any, b: Any) -> bool:
    """Equality of nested arguments, tensors by value."""
    if a is b:
        return True
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, _Call) and isinstance(b, _Call):
        return _same(a.args, b.args) and _same(a.kwargs, b.kwargs)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)
