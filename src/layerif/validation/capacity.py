"""What adapters in one decoder layer alone really gain: which layers want capacity.

For each layer a fresh LoRA on its projections, all other layers without, is fine-tuned for a small
budget of steps, the same batches in the same order for every layer; the ground truth is the fall
of the loss on rows that training did not see. Nothing below the layer is run again: its inputs are
those of the unchanged model, and are kept for one layer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerif.artifacts import GroundTruth
from layerif.calibration.walk import walk
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.core.progress import Advance, progress
from layerif.data.batching import Encoded
from layerif.errors import InputError
from layerif.influence.subspaces.lora import FreshLora
from layerif.influence.warmup import Schedule, fine_tune, fresh_adapter
from layerif.model.layers import DecoderLayers, find_decoder_layers, unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import describe, setting
from layerif.model.peft_adapters import refuse_adapted
from layerif.validation.options import CapacityOptions
from layerif.validation.partial import PartialForward
from layerif.validation.rows import Rows, finite

NAME = "capacity"
# What else to try where a loss is not finite.
RATE = ", or a smaller learning_rate"


@takes(CapacityOptions)
def capacity(
    model: Any,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    *,
    options: CapacityOptions,
    text: dict[str, Any] | None = None,
    steps: Steps = NO_STEPS,
) -> GroundTruth:
    """Adapters in each layer alone, and the fall of the validation rows' mean completion loss.

    AdamW without weight decay at a rate that falls linearly to 0, one batch of training rows a
    step, the mean over its rows of their mean completion loss; dropout off. The LoRA is in float32
    (float64 in a float64 model).

    Args:
        model: a causal LM of transformers without adapters; left as before.
        train, validation: tokenised rows of a task.
        options: of the LoRA on all projections of a layer, whose A is drawn by the seed and the
            projection's name and whose B begins at 0, and of its training; each by keyword too.
        text: where the rows come from, for the record.
        steps: keeps finished layers.

    Raises:
        InputError: no rows, a number out of its range, or a model with adapters already.
        NumericalError: a loss is not finite.
    """
    if not train or not validation:
        raise InputError(
            f"there are {len(train)} training and {len(validation)} validation rows; at least one "
            "of each is needed"
        )
    rank, seed, batch_tokens = options.rank, options.seed, options.batch_tokens
    train_steps, rate = options.train_steps, options.learning_rate
    lora = FreshLora(rank, options.alpha, seed)
    model = unwrapped(model)
    refuse_adapted(model, "so what fresh ones gain in one layer alone is not seen; open it without")
    layers = find_decoder_layers(model)
    trained, judged = (Rows(rows, batch_tokens, model) for rows in (train, validation))
    trial = _Trial(model, layers, lora, Schedule(NAME, train_steps, rate, seed), trained, judged)
    gains, parameters = [], []
    # A layer costs what those from it upwards cost.
    total = train_steps * len(layers) * (len(layers) + 1) // 2
    with evaluation_mode(model), progress("adapters in one layer", total) as advance:
        base = trial.base()
        inputs = [batch.inputs for batch in (*trained.batches, *judged.batches)]
        for visit in walk(model, layers, inputs):
            step = f"capacity-{visit.index:04d}"
            kept = steps.load(step)
            if kept is None:
                # Not held here, so that they go as the walk makes those of the next layer.
                kept = {"nats": trial.after(visit.index, list(visit.inputs()), advance)}
                steps.save(step, kept)
            else:
                advance((len(layers) - visit.index) * train_steps)
            gains.append((base - kept["nats"]).tolist())
            own = layers.of(visit.index)
            parameters.append(rank * sum(p.in_features + p.out_features for p in own))
    return GroundTruth(
        kind="capacity",
        sparsity=None,
        delta=None,
        training={
            "rank": rank,
            "alpha": options.alpha,
            "steps": train_steps,
            "rate": rate,
            "batch_tokens": batch_tokens,
            "rows": len(trained),
            "seed": seed,
            "parameters": parameters,
        },
        costs=gains,
        base_loss=base.mean().item(),
        model=describe(model),
        text={**(text or {}), "rows": len(judged), "tokens": judged.tokens},
        setting=setting(model),
    )


@dataclass
class _Trial:
    """Adapters in one layer of the model at a time."""

    model: Any
    layers: DecoderLayers
    lora: FreshLora
    schedule: Schedule
    trained: Rows
    judged: Rows

    def __post_init__(self) -> None:
        self._partial = PartialForward(self.model, self.layers)

    def base(self) -> torch.Tensor:
        """(rows,) nats a token of the rows that are judged, without adapters."""
        nats = [self._partial.whole(batch)[0] for batch in self.judged.batches]
        return finite(self.judged.means(nats), "validation row", "without adapters", RATE)

    def after(self, layer: int, hidden: Sequence[torch.Tensor], advance: Advance) -> torch.Tensor:
        """The same with adapters trained in one layer, which are gone afterwards.

        Args:
            layer: which one.
            hidden: what it gets of each batch, of training rows and then of those that are judged.
            advance: told of the layers that every step runs.
        """
        above = len(self.layers) - layer

        def loss(number: int) -> torch.Tensor:
            batch = self.trained.batches[number]
            nats = self._partial.upwards(batch, layer, hidden[number])
            return (nats / batch.counts.to(nats.device)).mean()

        count = len(self.trained.batches)
        own = self.layers.of(layer)
        with fresh_adapter(self.model, self.layers.path, own, self.lora, NAME) as pairs:
            fine_tune(pairs, loss, count, self.schedule, lambda _units=1: advance(above))
            with torch.no_grad():
                nats = [
                    self._partial.upwards(batch, layer, inputs)
                    for batch, inputs in zip(self.judged.batches, hidden[count:], strict=True)
                ]
        when = f"with adapters in layer {layer}"
        return finite(self.judged.means(nats), "validation row", when, RATE)
