"""A fresh LoRA put on projections for a while, and a few steps of AdamW on it.

The model's own weights stay as they are throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from layerif.core.progress import Advance
from layerif.errors import NumericalError
from layerif.influence.subspaces.base import generator_for
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import Projection
from layerif.model.modes import as_found
from layerif.model.peft_adapters import adapted_modules, check_rank

RATE = 3e-4


@dataclass(frozen=True)
class Schedule:
    """Number of steps, learning rate, and order of the batches.

    The rate falls linearly, from `rate` at the first step towards 0 after the last.

    Attributes:
        name: of the work, for errors; with the seed it gives the order of the batches.
        steps: of the optimiser, one batch each; every batch is used once before any is repeated.
        rate: learning rate of the first step.
        seed: of the order.
    """

    name: str
    steps: int
    rate: float = RATE
    seed: int = 0

    def order(self, batches: int) -> list[int]:
        """The number of the batch that each step takes, of `batches` in all."""
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
