"""What a piece of work takes beside the model's weights, by formula, before it begins.

    activations  what a backward pass keeps of every token in every layer, or what a forward pass
                 holds in one layer
    logits       of a slice of positions: themselves, their softmax, and its gradient
    kept         what the work holds until its end

Rough by nature: within half of what is measured, weights included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import psutil
import torch

from layerif.core.progress import note
from layerif.data.batching import Encoded
from layerif.errors import InputError
from layerif.likelihood import logit_bytes
from layerif.model.experts import ExpertMap
from layerif.model.layers import Projection, find_decoder_layers
from layerif.model.opening import input_device

# forward: losses alone. walk: layer by layer, without a head. backward: gradients of outputs.
# inputs: those, and the inputs of every projection kept beside them.
Pass = Literal["forward", "walk", "backward", "inputs"]
# Numbers of a token's hidden size that a layer's norms and residuals keep for the backward pass.
STREAMS = 8
# And copies of each projection's output: itself, and what the next operation makes of it.
COPIES = 1.5
# What configurations call the number of experts of a token.
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k")


def memory(model: Any, how: Pass, tokens: int, *, kept: float = 0) -> float:
    """Bytes beside the model's weights at the peak: of the largest batch, and of what is kept.

    Args:
        model: a causal LM.
        how: the kind of pass.
        tokens: of the batch, padding counted.
        kept: bytes that the work holds beside the pass: gradients, statistics, copies of weights.
    """
    layers = find_decoder_layers(model)
    floating = next(p.dtype for p in model.parameters() if p.is_floating_point())
    hidden = model.get_input_embeddings().weight.shape[-1]
    # Numbers of one token that each layer keeps, or holds at once.
    numbers = [STREAMS * hidden] * len(layers)
    for projection in layers.projections:
        inputs = projection.in_features if how == "inputs" else 0
        own = COPIES * projection.out_features + inputs
        numbers[projection.layer] += own * _share(model, projection)
    widths = sum(numbers) if how in ("backward", "inputs") else max(numbers)
    # Logits and their logarithms of softmax; going back, the gradients of both.
    copies = {"walk": 0, "forward": 2}.get(how, 4)
    logits = copies * logit_bytes(model, tokens) if copies else 0
    return tokens * widths * floating.itemsize + logits + kept


def _share(model: Any, projection: Projection) -> float:
    """The share of all tokens that a projection is given: of an expert's, those routed to it."""
    if not isinstance(projection.module, ExpertMap):
        return 1.0
    config = model.config.get_text_config(decoder=True)
    chosen = next((k for name in TOP_K if (k := getattr(config, name, None))), None)
    return min(chosen / projection.module.experts, 1.0) if isinstance(chosen, int) else 1.0


def note_memory(model: Any, what: str, how: Pass, tokens: int, *, kept: float = 0) -> None:
    """Say beforehand where it will hardly fit; nothing is said where there is room.

    Args:
        what: the work, as the note calls it.
        model, how, tokens, kept: as `memory` takes them.
    """
    try:
        need = memory(model, how, tokens, kept=kept)
    except InputError:
        return  # the formulas do not know its layers, and it may be run all the same
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
