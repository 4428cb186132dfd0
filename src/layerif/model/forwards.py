"""Forward functions of modules replaced for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@contextmanager
def replaced_forwards(
    modules: Sequence[nn.Module], replacement: Callable[[int, Forward], Forward]
) -> Iterator[None]:
    """Give each module another forward function inside; afterwards they are as they were.

    Args:
        modules: whose forward functions give way.
        replacement: gets a module's place and its forward function, and returns the other one.
    """
    # A forward of the module's own stands there already where accelerate places the module.
    own = [vars(module).get("forward") for module in modules]
    try:
        for place, module in enumerate(modules):
            module.forward = replacement(place, module.forward)
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward
