"""A fresh LoRA fine-tuned for a few steps, whose gradients are then compared: the paper's way.

With B = 0 only grad(B) is there. After some steps of training A has a gradient too, and both are
taken at a model that knows the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from layerif.batching import Encoded, collate, pack
from layerif.checkpoint import Steps
from layerif.choices import PaddingSide
from layerif.errors import InputError, NumericalError
from layerif.influence.subspaces import AdapterSubspace, FreshLora
from layerif.influence.subspaces.base import generator_for
from layerif.likelihood import row_sums, token_losses
from layerif.model import DecoderLayers, evaluation_mode
from layerif.progress import note, progress

NAME = "warmup"
RATE = 3e-4


@contextmanager
def warmed_up(
    model: Any,
    layers: DecoderLayers,
    items: Sequence[Encoded],
    lora: FreshLora,
    *,
    steps: int,
    batch_tokens: int,
    padding_side: PaddingSide,
    kept: Steps,
) -> Iterator[AdapterSubspace]:
    """Put a LoRA on every projection, fine-tune it on the samples, and take it out at the end.

    AdamW without weight decay at a rate that falls linearly from 3e-4 to 0, one batch a step, the
    mean over its samples of their mean completion loss; dropout off. The LoRA is in float32
    (float64 in a float64 model) whatever the model's dtype, and the model is left as it was found.

    Args:
        layers: the model's.
        items: the training samples.
        lora: its rank, alpha and seed; A starts as there, and the seed orders the batches.
        steps: of the optimiser, at least 1.
        kept: keeps the result, so that a run cut short need not train again.

    Raises:
        InputError: the model has adapters already, or `steps` is below 1.
        NumericalError: a loss is not finite.
    """
    if steps < 1:
        raise InputError(f"a warm-up takes at least 1 step, not {steps}")
    if any(hasattr(module, "get_base_layer") for module in model.modules()):
        raise InputError(
            "the model has adapters already, so no fresh one is warmed up; score with the one it "
            "has, or open it without"
        )
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tuner = _injected(model, layers, lora)
    try:
        pairs = _fill(model, layers, lora)
        found = kept.load(NAME)
        if found is None:
            batches = pack(items, batch_tokens)
            device = model.get_input_embeddings().weight.device
            losses = _train(model, batches, pairs, lora.seed, steps, device, padding_side)
            found = {"losses": torch.tensor(losses, dtype=torch.float64)}
            found |= {key: pair.detach().cpu() for key, pair in pairs.items()}
            kept.save(NAME, found)
        for key, pair in pairs.items():
            pair.data.copy_(found[key])
        first, last = found["losses"][0].item(), found["losses"][-1].item()
        note(f"warm-up: {steps} steps, loss of the first batch {first:.3f}, of the last {last:.3f}")
        record = {"steps": steps, "rate": RATE, "first_loss": first, "last_loss": last}
        yield AdapterSubspace(model, NAME, {"seed": lora.seed, "warmup": record})
    finally:
        tuner.unload()
        vars(model).pop("peft_config", None)
        for parameter in wanted:
            parameter.requires_grad_(True)


def _injected(model: Any, layers: DecoderLayers, lora: FreshLora) -> Any:
    from peft import LoraConfig, LoraModel
    from transformers.pytorch_utils import Conv1D

    targets = [f"{layers.path}.{p.layer}.{p.name}" for p in layers.projections]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type,unused-ignore]
        target_modules=targets,
        fan_in_fan_out=any(isinstance(p.module, Conv1D) for p in layers.projections),
    )
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn anew by name
        return LoraModel(model, {NAME: config}, NAME)


def _fill(model: Any, layers: DecoderLayers, lora: FreshLora) -> dict[str, nn.Parameter]:
    """A as a fresh LoRA of layerif has it and B = 0; returns both for every projection, by name."""
    wrappers = {
        id(module.get_base_layer()): module
        for module in model.modules()
        if hasattr(module, "get_base_layer")
    }
    pairs: dict[str, nn.Parameter] = {}
    for projection in layers.projections:
        wrapper = wrappers[id(projection.module)]
        down, up = wrapper.lora_A[NAME].weight, wrapper.lora_B[NAME].weight
        dtype = torch.promote_types(down.dtype, torch.float32)
        down.data = lora.down(projection).to(down.device, dtype)
        up.data = torch.zeros_like(up, dtype=dtype)
        pairs |= {f"{projection.key}.lora_A": down, f"{projection.key}.lora_B": up}
    return pairs


def _train(
    model: Any,
    batches: Sequence[Sequence[Encoded]],
    pairs: dict[str, nn.Parameter],
    seed: int,
    steps: int,
    device: torch.device,
    padding_side: PaddingSide,
) -> list[float]:
    """The loss of each step's batch before it."""
    optimizer = AdamW(pairs.values(), lr=RATE, weight_decay=0.0)
    generator = generator_for(seed, NAME)
    order: list[int] = []
    losses: list[float] = []
    with evaluation_mode(model), progress("warm-up", steps) as advance:
        for step in range(steps):
            order = order or torch.randperm(len(batches), generator=generator).tolist()
            batch = collate(batches[order.pop()], device=device, padding_side=padding_side)
            rows = row_sums(token_losses(model, batch), batch) / batch.counts
            loss = rows.mean()
            losses.append(loss.item())
            if not loss.isfinite():
                raise NumericalError(
                    f"the loss of step {step} of the warm-up is {loss.item()}; stopped "
                    "(try --dtype float32)"
                )
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / steps)
            optimizer.step()
            advance()
    for pair in pairs.values():
        pair.grad = None
    return losses
