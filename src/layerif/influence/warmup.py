"""A fresh LoRA put on projections for a while and fine-tuned for a few steps.

The warm-up compares its gradients then: the paper's way. With B = 0 only grad(B) is there. After
some steps of training A has a gradient too, and both are taken at a model that knows the task. The
model's own weights stay as they are throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from layerif.core.checkpoint import Steps
from layerif.core.progress import Advance, note, progress
from layerif.data.batching import Encoded, collate, pack
from layerif.errors import NumericalError
from layerif.influence.options import CollectOptions
from layerif.influence.subspaces.adapter import AdapterSubspace
from layerif.influence.subspaces.base import generator_for
from layerif.influence.subspaces.lora import FreshLora
from layerif.likelihood import row_sums, token_losses
from layerif.model.layers import DecoderLayers, Projection
from layerif.model.modes import as_found, evaluation_mode
from layerif.model.opening import input_device
from layerif.model.peft_adapters import (
    adaptable,
    adapted_modules,
    check_rank,
    note_left_out,
    refuse_adapted,
)

RATE = 3e-4


@dataclass(frozen=True)
class Schedule:
    """So many steps, at a rate that falls linearly from `rate` to 0.

    Attributes:
        name: of the work, for errors; with the seed it gives the order of the batches.
        steps: of the optimiser, one batch each; all batches go by before one comes again.
        rate: of the first step.
        seed: of the order.
    """

    name: str
    steps: int
    rate: float = RATE
    seed: int = 0

    def order(self, batches: int) -> list[int]:
        """Which of so many batches each step takes."""
        generator = generator_for(self.seed, self.name)
        found: list[int] = []
        while len(found) < self.steps:
            # From the end of each draw to its beginning.
            found += reversed(torch.randperm(batches, generator=generator).tolist())
        return found[: self.steps]


@contextmanager
def fresh_adapter(
    model: Any, path: str, projections: Sequence[Projection], lora: FreshLora, name: str
) -> Iterator[dict[str, nn.Parameter]]:
    """Put a LoRA on the projections; at the end the model is as before.

    A is as a fresh LoRA of layerif has it and B = 0, in float32 (float64 in a float64 model)
    whatever the model's dtype. Inside, no other parameter of the model requires a gradient.

    Args:
        model: without adapters.
        path: of the decoder layers in it.
        projections: of those layers.
        lora: its rank, alpha and seed.
        name: of the adapter.

    Raises:
        InputError: the rank is above a projection's smaller side.

    Yields:
        A and B of every projection, by the projection's name and `.lora_A` or `.lora_B`.
    """
    from peft import LoraConfig, LoraModel
    from transformers.pytorch_utils import Conv1D

    check_rank(projections, lora.rank)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type,unused-ignore]
        target_modules=[f"{path}.{p.layer}.{p.name}" for p in projections],
        fan_in_fan_out=any(isinstance(p.module, Conv1D) for p in projections),
    )
    with as_found(model):
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn again by name
            LoraModel(model, {name: config}, name)
        wrappers = {id(module.get_base_layer()): module for module in adapted_modules(model)}
        pairs: dict[str, nn.Parameter] = {}
        for projection in projections:
            wrapper = wrappers[id(projection.module)]
            down, up = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight
            dtype = torch.promote_types(down.dtype, torch.float32)
            down.data = lora.down(projection).to(down.device, dtype)
            up.data = torch.zeros_like(up, dtype=dtype)
            pairs |= {f"{projection.key}.lora_A": down, f"{projection.key}.lora_B": up}
        yield pairs


def fine_tune(
    parameters: Mapping[str, nn.Parameter],
    loss: Callable[[int], torch.Tensor],
    batches: int,
    schedule: Schedule,
    advance: Advance,
) -> list[float]:
    """AdamW without weight decay, one batch a step.

    Args:
        parameters: what is trained.
        loss: of a batch by its number, with a gradient.
        batches: how many there are.
        advance: told of every step.

    Returns:
        The loss of each step's batch before it.

    Raises:
        NumericalError: a loss is not finite.
    """
    optimizer = AdamW(parameters.values(), lr=schedule.rate, weight_decay=0.0)
    losses: list[float] = []
    for step, number in enumerate(schedule.order(batches)):
        found = loss(number)
        losses.append(found.item())
        if not found.isfinite():
            raise NumericalError(
                f"the loss of step {step} of fine-tuning ({schedule.name}) is {found.item()}; "
                "stopped (try dtype='float32')"
            )
        optimizer.zero_grad()
        found.backward()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * (1 - step / schedule.steps)
        optimizer.step()
        advance()
    for parameter in parameters.values():
        parameter.grad = None
    return losses


NAME = "warmup"


@contextmanager
def warmed_up(
    model: Any,
    layers: DecoderLayers,
    items: Sequence[Encoded],
    lora: FreshLora,
    options: CollectOptions,
    *,
    kept: Steps,
) -> Iterator[AdapterSubspace]:
    """Put a LoRA on every projection, fine-tune it on the samples, and take it out at the end.

    AdamW without weight decay at a rate that falls linearly from 3e-4 to 0, one batch a step, the
    mean over its samples of their mean completion loss; dropout off. The LoRA is in float32
    (float64 in a float64 model) whatever the model's dtype, and the model is left as before.

    Args:
        layers: the model's.
        items: the training samples.
        lora: its rank, alpha and seed; A starts as there, and the seed orders the batches.
        options: with the steps of the optimiser, `warmup_steps`, and how batches are made.
        kept: keeps the result, so that an interrupted run need not train again.

    Raises:
        InputError: the model has adapters already.
        NumericalError: a loss is not finite.
    """
    steps = options.warmup_steps
    refuse_adapted(
        model,
        "so no fresh one is warmed up; score with the one it has, or open it without",
    )
    adapted = adaptable(model, layers)
    note_left_out(layers, adapted)
    with fresh_adapter(model, layers.path, adapted, lora, NAME) as pairs:
        found = kept.load(NAME)
        if found is None:
            batches = pack(items, options.batch_tokens, model)
            device = input_device(model)

            def loss(number: int) -> torch.Tensor:
                batch = collate(batches[number], device=device, padding_side=options.padding_side)
                return (row_sums(token_losses(model, batch), batch) / batch.counts).mean()

            schedule = Schedule(NAME, steps, RATE, lora.seed)
            with evaluation_mode(model), progress("warm-up", steps) as advance:
                losses = fine_tune(pairs, loss, len(batches), schedule, advance)
            found = {"losses": torch.tensor(losses, dtype=torch.float64)}
            found |= {key: pair.detach().cpu() for key, pair in pairs.items()}
            kept.save(NAME, found)
        for key, pair in pairs.items():
            pair.data.copy_(found[key])
        first, last = found["losses"][0].item(), found["losses"][-1].item()
        note(f"warm-up: {steps} steps, loss of the first batch {first:.3f}, of the last {last:.3f}")
        record = {"steps": steps, "rate": RATE, "first_loss": first, "last_loss": last}
        yield AdapterSubspace(model, NAME, {"seed": lora.seed, "warmup": record})
