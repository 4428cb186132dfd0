"""How a trained adapter sends the tokens of a task's rows to its experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerif.adapters import routing
from layerif.artifacts import RoutingUse
from layerif.data import Example
from layerif.data.batching import collate, pack
from layerif.data.chunks import usable_length
from layerif.data.tokenizing import encode_samples
from layerif.finetuning.options import FinetuneOptions
from layerif.likelihood import token_losses
from layerif.model.layers import unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import Tokenizer, input_device


@torch.no_grad()
def routing_on(
    model: Any, tokenizer: Tokenizer, rows: Sequence[Example], options: FinetuneOptions
) -> RoutingUse:
    """The use of every router over the rows, prompts counted.

    Args:
        model: a PEFT model with a mixture of experts at work, several in some layer.

    Raises:
        InputError: as `encode_samples`, or there is no router.
    """
    base = unwrapped(model)
    length = usable_length(base, options.max_length)
    items, _ = encode_samples(tokenizer, rows, length, "validation", end=options.append_eos)
    device = input_device(base)
    with evaluation_mode(model), routing(model) as seen:
        for group in pack(items, options.batch_tokens, base):
            token_losses(base, collate(group, device=device, mask_padding=True))
    return seen.use(model)
