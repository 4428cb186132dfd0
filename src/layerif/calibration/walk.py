"""One walk through the decoder layers, each seen with the inputs that the layers below give it.

The model's own forward pass says how each layer is called: positional and keyword arguments are
captured, not assumed (attention masks and position embeddings differ from layer to layer in some
architectures). Then layer after layer runs on the hidden states of all batches, which are kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from layerif.calibration.hidden import HiddenStates
from layerif.calibration.statistics import Statistics
from layerif.data.batching import accepted
from layerif.errors import InputError
from layerif.model.experts import every_expert
from layerif.model.layers import DecoderLayers, Projection
from layerif.model.modes import replaced_forwards

# How the model called one decoder layer: arguments by place and by keyword, hidden states left out,
# and which of them are what the layer below returned beside its hidden states, by its place there.
_Call = tuple[tuple[Any, ...], dict[str, Any], dict[int | str, int]]
# How far a forward pass goes to see how layers are called.
_Extent = Literal["to the first", "through the first", "through all"]


class _Stop(Exception):
    """Ends a forward pass once enough is known."""


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
    _hidden: HiddenStates
    _calls: list[_Call]
    _once: bool = False
    _sent_all: Sequence[Projection] = ()
    _below: Sequence[tuple[Any, ...]] = ()
    _handed_on: int = 0

    def __post_init__(self) -> None:
        self._beside: list[tuple[Any, ...]] = [()] * len(self._calls)

    def inputs(self) -> Iterator[torch.Tensor]:
        """The hidden states that the layer is given, batch by batch.

        In a walk through unchanged layers `run` replaces each by its output, so go through both
        together.
        """
        for batch in range(len(self._calls)):
            yield self._hidden[batch]

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
        for batch in range(len(self._calls)):
            output = self._output(batch)
            yield output
            if self._once:
                self._hidden[batch] = output
                self._handed_on = batch + 1

    def observe(self, statistics: Statistics) -> None:
        """Run the layer once, on all batches, with the statistics watching its projections."""
        with statistics.watching(), every_expert(self.module, self._sent_all):
            for _ in self.run():
                pass

    @torch.no_grad()
    def _output(self, batch: int) -> torch.Tensor:
        places, kwargs, linked = self._calls[batch]
        args, kwargs = list(places), dict(kwargs)
        for place, returned in linked.items():
            if isinstance(place, int):
                args[place] = self._below[batch][returned]
            else:
                kwargs[place] = self._below[batch][returned]
        output = self.module(self._hidden[batch], *args, **kwargs)
        if not isinstance(output, tuple | list):
            return output
        self._beside[batch] = tuple(output[1:])
        return output[0]

    def _hand_on(self) -> None:
        """Make the next layer's inputs of what is not yet handed on."""
        for batch in range(self._handed_on, len(self._calls)):
            self._hidden[batch] = self._output(batch)


@torch.no_grad()
def walk(
    model: Any,
    layers: DecoderLayers,
    batches: Sequence[dict[str, torch.Tensor]],
    hidden: HiddenStates | None = None,
    *,
    unchanged: bool = False,
    all_experts: bool = False,
) -> Iterator[Visit]:
    """Visit the decoder layers from the bottom up.

    The caller may run the layer to observe it (`visit.run()`), and change its weights; the next
    layer's inputs are made after that, from the changed layer.

    Args:
        batches: input_ids, attention_mask and position_ids of each batch. The hidden states of all
            of them are kept: tokens x hidden size x bytes a number.
        hidden: where they are kept, empty as yet; in memory for None.
        unchanged: the layers stay as they are, so that what the caller's run of a layer gives is
            handed on, and no layer runs twice.
        all_experts: statistics see every token at every expert, whatever is routed to it.
    """
    hidden = [] if hidden is None else hidden
    calls = _capture(model, layers, batches, hidden)
    last = len(layers) - 1
    below: Sequence[tuple[Any, ...]] = ()
    for index, module in enumerate(layers.modules):
        sent_all = layers.of(index) if all_experts else ()
        own = [call[index] for call in calls]
        visit = Visit(index, module, hidden, own, unchanged, sent_all, below)
        yield visit
        if index != last:
            visit._hand_on()
            linked = any(call[index + 1][2] for call in calls)
            below = visit._beside if linked else ()


def _capture(
    model: Any,
    layers: DecoderLayers,
    batches: Sequence[dict[str, torch.Tensor]],
    hidden: HiddenStates,
) -> list[list[_Call]]:
    """The calls of all layers for each batch; the first layer's inputs go to `hidden`.

    What layers are called with rarely depends on what they compute, or on the tokens. So the first
    two batches of a shape pass through the first layer alone, the others handing on what they get:
    calls that come out the same for both depend on neither, and hold for every batch of the shape.
    Otherwise, and where a shape has a single batch, the whole forward pass is made.
    """
    of_shape: dict[torch.Size, list[dict[str, torch.Tensor]]] = defaultdict(list)
    for inputs in batches:
        of_shape[inputs["input_ids"].shape].append(inputs)
    settled: dict[torch.Size, list[_Call]] = {}
    for shape, alike in of_shape.items():
        if len(alike) > 1:
            one, other = (_observe(model, layers, i, "through the first")[1] for i in alike[:2])
            if _same(one, other):
                settled[shape] = one
    calls = []
    for inputs in batches:
        known = settled.get(inputs["input_ids"].shape)
        how: _Extent = "to the first" if known else "through all"
        first, captured = _observe(model, layers, inputs, how)
        hidden.append(first)
        calls.append(known or captured)
    return calls


def _observe(
    model: Any, layers: DecoderLayers, inputs: dict[str, torch.Tensor], extent: _Extent
) -> tuple[torch.Tensor, list[_Call]]:
    """The first layer's input, and the calls of the layers that a forward pass came to."""
    first: list[torch.Tensor] = []
    calls: list[_Call] = []
    beside: list[Any] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        beside[:] = output[1:] if isinstance(output, tuple | list) else ()

    def returned(value: Any) -> int | None:
        """The place of an argument among what the layer below returned beside hidden states."""
        found = (place for place, one in enumerate(beside) if value is not None and one is value)
        return next(found, None)

    def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        if not first:
            first.append(hidden)
            if extent == "to the first":
                raise _Stop
        given: list[tuple[int | str, Any]] = [*enumerate(rest), *kwargs.items()]
        places = {name: at for name, value in given if (at := returned(value)) is not None}
        calls.append((rest, kwargs, places))
        if len(calls) == len(layers):
            raise _Stop

    with ExitStack() as hooks, suppress(_Stop):
        for module in layers.modules:
            hooks.enter_context(module.register_forward_pre_hook(record, with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(keep))
        if extent == "through the first":
            hooks.enter_context(_handing_on(layers))
        # The decoder without its head: no logits are needed here.
        decoder = model.base_model
        decoder(**accepted(decoder.forward, inputs), use_cache=False)
    return first[0], calls


@contextmanager
def _handing_on(layers: DecoderLayers) -> Iterator[None]:
    """Every layer but the first returns its input, and what else the first returned."""
    rest: list[tuple[Any, ...] | None] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        rest.append(tuple(output[1:]) if isinstance(output, tuple | list) else None)

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if rest[0] is None else (hidden, *rest[0])

    with (
        layers.modules[0].register_forward_hook(keep),
        replaced_forwards(layers.modules[1:], lambda _place, _forward: hand_on),
    ):
        yield


def _same(a: Any, b: Any) -> bool:
    """Equality of nested arguments, tensors by value."""
    if a is b:
        return True
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)
