"""Tiny models with a LoRA whose A and B are far from where they begin."""

from __future__ import annotations

import warnings

import torch
from peft import LoraConfig, get_peft_model

from helpers.texts import SENTENCES
from helpers.tiny import tiny_model
from layerif.model.opening import open_model

IDS = torch.randint(3, 250, (2, 17), generator=torch.Generator().manual_seed(0))


def adapted(architecture="llama", name="default", **options):
    """A PEFT model whose A and B are far from zero."""
    options = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT sets fan_in_fan_out for GPT-2 by itself, and says so
        model = get_peft_model(
            tiny_model(architecture, torch.float64), LoraConfig(**options), adapter_name=name
        )
    fill_loras(model)
    return model.eval()


def fill_loras(model):
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = draw / 10


def adapter_on(model, **options):
    """A PEFT model whose adapter, all its parts, is away from what it begins with."""
    options = {"r": 4, "target_modules": ["q_proj", "up_proj"]} | options
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        wrapped = get_peft_model(model, LoraConfig(**options))
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape)
    return wrapped.eval()


def trained_lora(folder, path, targets):
    """A LoRA that some steps on a pruned model have taken away from zero."""
    model, tokenizer = open_model(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        lora = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    optimiser = torch.optim.Adam([p for p in lora.parameters() if p.requires_grad], lr=0.02)
    ids = torch.tensor([tokenizer(SENTENCES)["input_ids"][:64]])
    for _ in range(3):
        loss = lora(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    lora.save_pretrained(path)
    return lora


@torch.no_grad()
def logits(model):
    """Of one fixed batch, `IDS`."""
    return model(input_ids=IDS).logits
