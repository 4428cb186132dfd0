"""Where the residual stream lies after each unit, found by leaving units out and comparing.

After a layer it is the layer's output. After a sublayer it is what the next part of the layer reads
(`h + attention(h)` goes into the norm before the MLP), or nowhere by itself, where sublayers run
side by side and their outputs are added up at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layerif.compress.depth.skipping import (
    PROBED,
    Skipping,
    first_of,
    hidden_of,
    run_body,
    short_inputs,
)
from layerif.compress.depth.units import Unit
from layerif.errors import InputError
from layerif.model.modes import evaluation_mode

# Rounding that two ways to the same stream may differ by, in steps of its precision.
ROUNDINGS = 64


@dataclass(frozen=True, eq=False)
class Part:
    """Units that add to the stream between two places of it.

    Attributes:
        units: one; or several side by side, whose outputs are what they add.
        reader: what is given the stream behind them; None where that is the layer's output.
    """

    units: Sequence[Unit]
    reader: nn.Module | None = None


@torch.no_grad()
def parts_of(skipping: Skipping, units: Sequence[Unit]) -> list[list[Part]]:
    """For each layer its parts, in the order in which they run.

    Raises:
        InputError: a layer does more to the stream than its sublayers add.
    """
    layers = skipping.layers.modules
    own: list[list[Unit]] = [[] for _ in layers]
    for unit in units:
        own[unit.layer].append(unit)
    if not units[0].name:
        return [[Part(each)] for each in own]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A copy, since some layers add to what they are given in place.
        hidden = hidden_of(args, kwargs).clone()
        rest = {n: v for n, v in kwargs.items() if args or v is not hidden_of(args, kwargs)}
        calls.append(((hidden, *args[1:]), rest))

    with evaluation_mode(skipping.model):
        with ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(layer.register_forward_pre_hook(keep, with_kwargs=True))
            run_body(skipping.model, short_inputs(skipping.model, PROBED))
        return [
            _parts(skipping, index, each, calls[index]) if each else []
            for index, each in enumerate(own)
        ]


def _parts(
    skipping: Skipping, index: int, units: Sequence[Unit], call: tuple[Any, dict[str, Any]]
) -> list[Part]:
    layer = skipping.layers.modules[index]
    (hidden, *args), kwargs = call
    inputs: list[tuple[nn.Module, torch.Tensor]] = []
    outputs: dict[str, torch.Tensor] = {}

    def read(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if given or named:
            first = given[0] if given else next(iter(named.values()))
            if isinstance(first, torch.Tensor):
                inputs.append((module, first.clone()))

    def run(*dropped: Unit) -> torch.Tensor:
        with skipping.without(dropped):
            return first_of(layer(hidden.clone(), *args, **kwargs)).clone()

    with ExitStack() as hooks:
        for child in layer.children():
            hooks.enter_context(child.register_forward_pre_hook(read, with_kwargs=True))
        for unit in units:
            keep = _kept_in(outputs, unit.name)
            hooks.enter_context(unit.module.register_forward_hook(keep))
        whole = run()
    order = sorted(units, key=lambda unit: list(outputs).index(unit.name))
    if not _alike(run(*units), hidden):
        raise InputError(
            f"layer {index} of {type(skipping.model).__name__} changes the residual stream beside "
            "what its sublayers add, so these cannot be dropped one by one; choose whole layers, "
            "unit='layer'"
        )
    parts, together, before = [], list[Unit](), hidden
    for place, unit in enumerate(order):
        together.append(unit)
        ended = place == len(order) - 1
        after = whole if ended else run(*order[place + 1 :])
        reader = next((m for m, given in inputs if not ended and _alike(given, after)), None)
        if not ended and reader is None:
            continue
        if len(together) > 1 and not _alike(sum(outputs[u.name] for u in together), after - before):
            raise InputError(
                f"{' and '.join(u.key for u in together)} are added to the residual stream in a "
                "way that does not tell them apart; choose whole layers, unit='layer'"
            )
        parts.append(Part(together, reader))
        together, before = [], after
    return parts


def _kept_in(outputs: dict[str, torch.Tensor], name: str) -> Any:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        outputs[name] = first_of(output).clone()

    return keep


def _alike(one: Any, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    allowed = ROUNDINGS * torch.finfo(other.dtype).eps * float(other.abs().max())
    return float((one - other).abs().max()) <= allowed
