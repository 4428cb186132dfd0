"""Run a model in another way for a while, and leave it as before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from functools import partial
from typing import Any

from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedConfig

Forward = Callable[..., Any]
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
def replaced_forwards(
    modules: Sequence[nn.Module], replacement: Callable[[int, Forward], Forward]
) -> Iterator[None]:
    """Give each module another forward function inside; afterwards they are as they were.

    Args:
        modules: whose forward functions are replaced.
        replacement: gets a module's index and its forward function, and returns the other one.
    """
    # Where accelerate places a module, it already has a forward of its own.
    own = [vars(module).get("forward") for module in modules]
    try:
        for index, module in enumerate(modules):
            module.forward = replacement(index, module.forward)
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


def checkpointed(
    layers: Sequence[nn.Module], *, training: bool = False
) -> AbstractContextManager[None]:
    """Gradient checkpointing of each decoder layer inside; afterwards they are as they were.

    The memory of a backward pass is then one layer's activations and every layer's input, for a
    third more time. transformers' own switch works in training mode only, where dropout is on; here
    the layers' forward is replaced, whatever mode they are in. Forward hooks run twice; unless
    `training`, they see outputs that require a gradient in the second run only.

    Args:
        training: the second run draws the same dropout as the first, and a layer's inputs need not
            require a gradient.
    """
    run = _rerun if training else _recomputed
    return replaced_forwards(layers, lambda _index, forward: partial(run, forward))


def _recomputed(forward: Forward, hidden: Any, *args: Any, **options: Any) -> Any:
    # Keyword arguments (masks, positions) need no gradient, and this kind of checkpoint takes none.
    run = _as_here(partial(forward, **options))
    return checkpoint(run, hidden, *args, use_reentrant=True, preserve_rng_state=False)


def _as_here(forward: Forward) -> Forward:
    """A forward that goes through the torch function modes of now when it is run later, too.

    A backward pass, which runs layers again, is outside of them.
    """
    modes = _get_current_function_mode_stack()
    if not modes:
        return forward

    def run(*args: Any) -> Any:
        here = _get_current_function_mode_stack()
        with ExitStack() as open_:
            for mode in modes:
                if not any(other is mode for other in here):
                    open_.enter_context(mode)
            return forward(*args)

    return run


def _rerun(forward: Forward, *args: Any, **options: Any) -> Any:
    return checkpoint(partial(forward, **options), *args, use_reentrant=False)


@contextmanager
def as_found(model: nn.Module, *, unless_done: bool = False) -> Iterator[None]:
    """Afterwards the model is made of what it was made of, whatever happened inside.

    Adapters and hooks that were put into it are gone, its modules have the forward functions,
    modes and attributes they had, its configurations say what they said, and the same parameters
    want a gradient. Only the numbers in its weights are left as they are then.

    Args:
        unless_done: what was done to it stays, where no error ended it.
    """
    modules = list(model.modules())
    # For each attribute of each owner its value and, where that is a container, what is in it.
    attributes = [
        (owner, {name: (value, _inside(value)) for name, value in vars(owner).items()})
        for owner in (*modules, *_configurations(modules))
    ]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    done = False
    try:
        yield
        done = unless_done
    finally:
        if not done:
            for owner, before in attributes:
                _put_back(vars(owner), before)
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


def _inside(value: Any) -> Any:
    return copy(value) if type(value) in _CONTAINERS else None


def _put_back(own: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    for name in own.keys() - before.keys():
        del own[name]
    for name, (value, inside) in before.items():
        if isinstance(inside, list):
            value[:] = inside
        elif inside is not None:
            # In place: handles of hooks know the dictionary that they are in.
            value.clear()
            value.update(inside)
        own[name] = value
