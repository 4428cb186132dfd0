"""Decoder layers that keep no activations for the backward pass, and are run again in it.

transformers' own switch works in training mode only, where dropout is on. Here it is the layers'
forward that is replaced, whatever mode they are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Gradient checkpointing of each layer inside; afterwards they are as they were.

    The memory of a backward pass is then one layer's activations and every layer's input, for a
    third more time. Forward hooks run twice, and see outputs that require a gradient in the second
    run only.
    """
    # A forward of the module's own stands there already where accelerate places the layer.
    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _recomputed(forward: Any, hidden: Any, *args: Any, **options: Any) -> Any:
    # Keyword arguments (masks, positions) need no gradient, and this kind of checkpoint takes none.
    return checkpoint(
        partial(forward, **options), hidden, *args, use_reentrant=True, preserve_rng_state=False
    )
