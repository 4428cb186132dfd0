"""A fresh LoRA, fine-tuned for a few steps, whose gradients are compared: the paper's way.

With B = 0 only grad(B) is there. After some steps of training A has a gradient too, and both are
taken at a model that knows the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from layerif.core.checkpoint import Steps
from layerif.core.progress import note, progress
from layerif.data.batching import Encoded, collate, pack
from layerif.influence.fresh_adapter import RATE, Schedule, fine_tune, fresh_adapter
from layerif.influence.options import CollectOptions
from layerif.influence.subspaces.adapter import AdapterSubspace
from layerif.influence.subspaces.lora import FreshLora
from layerif.likelihood import row_sums, token_losses
from layerif.model.layers import DecoderLayers
from layerif.model.modes import evaluation_mode
from layerif.model.opening import input_device
from layerif.model.peft_adapters import adaptable, note_left_out, refuse_adapted

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
