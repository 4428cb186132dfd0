"""Run a model as it is meant to be measured, and leave it as before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from torch import nn
from transformers import GenerationConfig, PreTrainedConfig

_CONTAINERS = (dict, OrderedDict, list, set)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; afterwards every module is in the mode it was in, each by itself."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def as_found(model: nn.Module, *, unless_done: bool = False) -> Iterator[None]:
    """Afterwards the model is made of what it was made of, whatever happened inside.

    Adapters and hooks that were put into it are gone, its modules have the forward functions,
    modes and attributes they had, its configurations say what they said, and the same parameters
    want a gradient. The numbers in its weights alone are left as they are then.

    Args:
        unless_done: what was done to it stays, where no error ended it.
    """
    modules = list(model.modules())
    owners = [*modules, *_configurations(modules)]
    attributes = [_attributes(owner) for owner in owners]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    done = False
    try:
        yield
        done = unless_done
    finally:
        if not done:
            for owner, found in zip(owners, attributes, strict=True):
                _put_back(owner, found)
            for parameter, wants in wanted:
                parameter.requires_grad_(wants)


def _configurations(modules: list[nn.Module]) -> list[Any]:
    """Every configuration that a module holds, and those within it, once each."""
    found: dict[int, Any] = {}
    waiting: list[Any] = list(modules)
    while waiting:
        for value in vars(waiting.pop()).values():
            if isinstance(value, PreTrainedConfig | GenerationConfig) and id(value) not in found:
                found[id(value)] = value
                waiting.append(value)
    return list(found.values())


def _attributes(owner: Any) -> dict[str, tuple[Any, Any]]:
    """For each attribute its value and, where that is a container, what is in it."""
    return {
        name: (value, copy(value) if type(value) in _CONTAINERS else None)
        for name, value in vars(owner).items()
    }


def _put_back(owner: Any, attributes: dict[str, tuple[Any, Any]]) -> None:
    own = vars(owner)
    for name in own.keys() - attributes.keys():
        del own[name]
    for name, (value, inside) in attributes.items():
        if isinstance(inside, list):
            value[:] = inside
        elif inside is not None:
            # In place: handles of hooks know the dictionary that they are in.
            value.clear()
            value.update(inside)
        own[name] = value
