"""A model with some of its layers or sublayers passed over, and put back.

A layer that is passed over returns the hidden states that it is given; a sublayer returns zeros.
What they return beside that, where it is a tuple, is found out by one short forward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layerif.compress.depth.units import Unit
from layerif.data.batching import Encoded, accepted, collate
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers
from layerif.model.modes import Forward, evaluation_mode, replaced_forwards
from layerif.model.opening import input_device

# Tokens of the pass that looks at how layers are called.
PROBED = 8


@dataclass(frozen=True)
class _Form:
    """What a module returns: hidden states alone (`beside` None), or so many values beside them.

    Attributes:
        beside: how many.
        handed: which of them it is given by the layer below, by place: the argument's name or
            place after the hidden states.
    """

    beside: int | None
    handed: dict[int, int | str]

    def output(self, hidden: torch.Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.beside is None:
            return hidden
        rest = []
        for place in range(self.beside):
            name = self.handed.get(place)
            if isinstance(name, int):
                rest.append(args[name] if name < len(args) else None)
            else:
                rest.append(None if name is None else kwargs.get(name))
        return (hidden, *rest)


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a layer or sublayer is called with."""
    found = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
    if not isinstance(found, torch.Tensor):
        raise InputError("a decoder layer is called without hidden states, which is not supported")
    return found


def first_of(output: Any) -> torch.Tensor:
    """The hidden states among what a layer or sublayer returns."""
    found = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(found, torch.Tensor)
    return found


class Skipping:
    """Passes over layers and sublayers of one model."""

    def __init__(self, model: Any, layers: DecoderLayers, units: Sequence[Unit]) -> None:
        """Look at how each is called, by a forward pass over a few tokens."""
        self.model, self.layers = model, layers
        self._forms = _forms(model, layers, [unit.module for unit in units])

    @contextmanager
    def without(self, dropped: Sequence[Unit]) -> Iterator[None]:
        """Inside, the model runs without some units; afterwards as before."""

        def replacement(place: int, _forward: Forward) -> Forward:
            unit = dropped[place]
            form = self._forms[id(unit.module)]

            def passed(*args: Any, **kwargs: Any) -> Any:
                hidden = hidden_of(args, kwargs)
                if unit.name:
                    hidden = torch.zeros_like(hidden)
                return form.output(hidden, args[1:], kwargs)

            return passed

        with replaced_forwards([unit.module for unit in dropped], replacement):
            yield

    @contextmanager
    def keeping_inputs(self, places: Collection[int]) -> Iterator[dict[int, list[torch.Tensor]]]:
        """Inside, what some layers are given is kept, forward pass by forward pass."""
        kept: dict[int, list[torch.Tensor]] = {place: [] for place in places}
        with ExitStack() as hooks:
            for place, found in kept.items():
                layer = self.layers.modules[place]
                keep = _keeper(found)
                hooks.enter_context(layer.register_forward_pre_hook(keep, with_kwargs=True))
            yield kept

    @contextmanager
    def beginning_at(self, place: int, inputs: Sequence[torch.Tensor]) -> Iterator[None]:
        """Inside, forward passes begin at a layer: those below it hand its inputs on.

        Not where layers hand on more than hidden states: there all of them run.

        Args:
            place: of the layer.
            inputs: of each forward pass, as `keeping_inputs` kept them.
        """
        below = self.layers.modules[:place]
        if any(self._forms[id(layer)].handed for layer in below):
            yield
            return
        passes = iter(inputs)

        def replacement(index: int, _forward: Forward) -> Forward:
            form = self._forms[id(below[index])]
            last = index == place - 1

            def passed(*args: Any, **kwargs: Any) -> Any:
                hidden = next(passes) if last else hidden_of(args, kwargs)
                return form.output(hidden, args[1:], kwargs)

            return passed

        with replaced_forwards(below, replacement):
            yield


def _keeper(found: list[torch.Tensor]) -> Any:
    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(hidden_of(args, kwargs).clone())

    return keep


@torch.no_grad()
def _forms(model: Any, layers: DecoderLayers, modules: Sequence[nn.Module]) -> dict[int, _Form]:
    counts: dict[int, int | None] = {}
    handed: dict[int, int | str] = {}
    last: list[Any] = []
    whole = {id(layer) for layer in layers.modules}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if id(module) in whole:
            given: list[tuple[int | str, Any]] = [*enumerate(args[1:]), *kwargs.items()]
            for name, value in given:
                places = (p for p, one in enumerate(last) if value is not None and one is value)
                if (place := next(places, None)) is not None:
                    handed[place] = name

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        several = isinstance(output, tuple | list)
        counts[id(module)] = len(output) - 1 if several else None
        if id(module) in whole:
            last[:] = output[1:] if several else ()

    with ExitStack() as hooks, evaluation_mode(model):
        for module in {*layers.modules, *modules}:
            hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(after))
        run_body(model, short_inputs(model, PROBED))
    if unseen := [module for module in modules if id(module) not in counts]:
        raise InputError(
            f"{type(unseen[0]).__name__}, a part of {type(model).__name__}, is never called as a "
            "module, so it cannot be passed over"
        )
    return {
        id(module): _Form(counts[id(module)], handed if id(module) in whole else {})
        for module in (*layers.modules, *modules)
    }


def short_inputs(model: Any, length: int) -> dict[str, torch.Tensor]:
    """A batch of one text of a few tokens, drawn from the lower part of the vocabulary."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(3, vocabulary - 1), vocabulary, (length,), generator=generator)
    return collate([Encoded(0, ids.tolist(), 1)], device=input_device(model)).inputs


def run_body(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    """What the model without its head makes of a batch's inputs."""
    decoder = model.base_model
    return decoder(**accepted(decoder.forward, inputs), use_cache=False)
