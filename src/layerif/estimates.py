"""What a piece of work takes beside the model's weights, by formula, before it begins.

    activations  what a backward pass keeps of every token in every layer, or what a forward pass
                 holds in one layer
    logits       of a slice of positions: themselves, their softmax, and its gradient
    kept         what the work holds until its end

Rough by nature: within half of what is measured, weights included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch

from layerif.core.progress import note
from layerif.data.batching import Encoded
from layerif.errors import InputError
from layerif.likelihood import logit_bytes
from layerif.model.layers import Projection, find_decoder_layers
from layerif.model.opening import input_device

# forward: losses alone. walk: layer by layer, without a head. backward: gradients of outputs.
# inputs: those, and the inputs of every projection kept beside them.
Pass = Literal["forward", "walk", "backward", "inputs"]
# Numbers of a token's hidden size that a layer's norms and residuals keep for the backward pass.
STREAMS = 8
# And copies of each projection's output: itself, and what the next operation makes of it.
COPIES = 1.5


@dataclass(frozen=True)
class Memory:
    """Bytes beside the model's weights, at the peak."""

    activations: float
    logits: float
    kept: float

    @property
    def total(self) -> float:
        return self.activations + self.logits + self.kept


def memory(
    model: Any, how: Pass, tokens: int, *, scored: int | None = None, kept: float = 0
) -> Memory:
    """What the largest batch takes, and what is kept.

    Args:
        model: a causal LM.
        how: the kind of pass.
        tokens: of the batch, padding counted.
        scored: how many of them have a loss; None for all.
        kept: bytes that the work holds beside the pass: gradients, statistics, copies of weights.
    """
    layers = find_decoder_layers(model)
    floating = next(p.dtype for p in model.parameters() if p.is_floating_point())
    hidden = model.get_input_embeddings().weight.shape[-1]
    numbers = [
        _numbers([p for p in layers.projections if p.layer == layer], hidden, how)
        for layer in range(len(layers))
    ]
    widths = sum(numbers) if how in ("backward", "inputs") else max(numbers)
    logits = 0
    if how != "walk":
        # Logits and their logarithms of softmax; going back, the gradients of both.
        copies = 2 if how == "forward" else 4
        logits = copies * logit_bytes(model, tokens if scored is None else scored)
    return Memory(tokens * widths * floating.itemsize, logits, kept)


def note_memory(
    model: Any,
    what: str,
    how: Pass,
    tokens: int,
    *,
    scored: int | None = None,
    kept: float = 0,
) -> None:
    """Say beforehand where it will hardly fit; nothing is said where there is room.

    Args:
        what: the work, as the note calls it.
        model, how, tokens, scored, kept: as `memory` takes them.
    """
    try:
        need = memory(model, how, tokens, scored=scored, kept=kept).total
    except InputError:
        return  # its layers are none that formulas are known for, and it may be run all the same
    free = free_memory(input_device(model))
    if need > free:
        note(
            f"{what} takes about {need / 1e9:.1f} GB beside the model, and {free / 1e9:.1f} GB are "
            "free; fewer tokens a batch take less"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; of the CPU, those of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def largest(batches: Sequence[Sequence[Encoded]]) -> int:
    """Tokens of the largest batch, padding counted."""
    sizes = (len(batch) * max(len(item.input_ids) for item in batch) for batch in batches)
    return max(sizes, default=0)


def _numbers(projections: Sequence[Projection], hidden: int, how: Pass) -> float:
    """Numbers of one token that one layer keeps, or holds at once."""
    outputs = sum(projection.out_features for projection in projections)
    inputs = sum(projection.in_features for projection in projections) if how == "inputs" else 0
    return COPIES * outputs + STREAMS * hidden + inputs
