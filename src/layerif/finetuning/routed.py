"""How a trained adapter sends the tokens of a task's rows to its experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerif.artifacts import RoutingUse
from layerif.batching import collate, encode_samples, pack
from layerif.chunks import usable_length
from layerif.finetuning.batches import texts_of
from layerif.finetuning.options import FinetuneOptions
from layerif.likelihood import token_losses
from layerif.model import Tokenizer, evaluation_mode, input_device, unwrapped
from layerif.moe import routing
from layerif.tasks import Example


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
    texts = texts_of(tokenizer, rows, append_eos=options.append_eos)
    base = unwrapped(model)
    length = usable_length(base, options.max_length)
    items, _ = encode_samples(tokenizer, texts, length, "validation")
    device = input_device(base)
    with evaluation_mode(model), routing(model) as seen:
        for group in pack(items, options.batch_tokens, base):
            token_losses(base, collate(group, device=device, mask_padding=True))
    return seen.use(model)
