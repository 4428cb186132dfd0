"""Tiny models with a mixture of LoRA experts, and batches for them."""

from __future__ import annotations

import torch
from peft import get_peft_model

from helpers.tiny import tiny_model
from layerif.adapters import LoraMoeConfig

COEFFICIENT = 0.3


def adapted(dtype=torch.float32, *, architecture="llama", **options):
    """A model with one, three and four experts in its layers, and load balancing."""
    torch.manual_seed(5)
    options = {"aux_loss_coef": COEFFICIENT, "init_weights": False, "top_k": 2} | options
    config = LoraMoeConfig(num_experts=[3, 1, 4], r=2, **options)
    model = get_peft_model(tiny_model(architecture, dtype), config)
    with torch.no_grad():  # no token is sure of its experts
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.2)
    return model


def texts(count, length=8):
    """A batch of texts of two lengths by turns, so that every pair has as many labels."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 250, (count, length), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1::2, -1] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def part(batch, start, stop):
    """Some texts of a batch."""
    return {name: values[start:stop] for name, values in batch.items()}
