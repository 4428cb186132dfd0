"""Decoder layers that keep no activations for the backward pass, and are run again in it.

transformers' own switch works in training mode only, where dropout is on. Here it is the layers'
forward that is replaced, whatever mode they are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from layerif.model.forwards import replaced_forwards


def checkpointed(
    layers: Sequence[nn.Module], *, training: bool = False
) -> AbstractContextManager[None]:
    """Gradient checkpointing of each layer inside; afterwards they are as they were.

    The memory of a backward pass is then one layer's activations and every layer's input, for a
    third more time. Forward hooks run twice; unless `training`, they see outputs that require a
    gradient in the second run only.

    Args:
        training: the second run draws the same dropout as the first, and what a layer is handed
            need not require a gradient.
    """
    run = _rerun if training else _recomputed
    return replaced_forwards(layers, lambda _place, forward: partial(run, forward))


def _recomputed(forward: Any, hidden: Any, *args: Any, **options: Any) -> Any:
    # Keyword arguments (masks, positions) need no gradient, and this kind of checkpoint takes none.
    return checkpoint(
        partial(forward, **options), hidden, *args, use_reentrant=True, preserve_rng_state=False
    )


def _rerun(forward: Any, *args: Any, **options: Any) -> Any:
    return checkpoint(partial(forward, **options), *args, use_reentrant=False)
