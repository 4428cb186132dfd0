"""What adapters in one decoder layer alone really gain: which layers want capacity.

For each layer a fresh LoRA on its projections, all other layers without, is fine-tuned for a small
budget of steps, the same batches in the same order for every layer; the ground truth is the fall
of the loss on rows that training did not see. Nothing below the layer is run again: its inputs are
those of the unchanged model, and are kept for one layer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerif.artifacts import GroundTruth
from layerif.calibration.walk import walk
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.core.progress import Advance, progress
from layerif.data.batching import Encoded
from layerif.errors import InputError
from layerif.influence.fresh_adapter import Schedule, fine_tune, fresh_adapter
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import Projection, find_decoder_layers, unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import describe, setting
from layerif.model.peft_adapters import adaptable, note_left_out, refuse_adapted
from layerif.validation.options import CapacityOptions
from layerif.validation.partial import PartialForward, Rows

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
    model = unwrapped(model)
    refuse_adapted(model, "so what fresh ones gain in one layer alone is not seen; open it without")
    layers = find_decoder_layers(model)
    projections = adaptable(model, layers)
    note_left_out(layers, projections)
    partial = PartialForward(model, layers)
    trained = Rows(train, options.batch_tokens, model, "training row")
    judged = Rows(validation, options.batch_tokens, model, "validation row", RATE)
    batches = [*trained.batches, *judged.batches]
    lora = FreshLora(options.rank, options.alpha, options.seed)
    schedule = Schedule(NAME, options.train_steps, options.learning_rate, options.seed)
    gains, parameters = [], []

    def adapted(
        layer: int, own: Sequence[Projection], hidden: Sequence[torch.Tensor], advance: Advance
    ) -> torch.Tensor:
        """(rows,) nats a token with adapters trained at a layer's `own` projections.

        `hidden` is what the layer is given for each batch.
        """

        def loss(number: int) -> torch.Tensor:
            nats = partial.upwards(batches[number], layer, hidden[number])
            return (nats / batches[number].counts.to(nats.device)).mean()

        count = len(trained.batches)
        with fresh_adapter(model, layers.path, own, lora, NAME) as pairs:
            fine_tune(pairs, loss, count, schedule, lambda _units=1: advance(len(layers) - layer))
            with torch.no_grad():
                nats = [
                    partial.upwards(batch, layer, inputs)
                    for batch, inputs in zip(judged.batches, hidden[count:], strict=True)
                ]
        return judged.means(nats, f"with adapters in layer {layer}")

    # A step in a layer costs what the layers from it upwards cost.
    total = options.train_steps * len(layers) * (len(layers) + 1) // 2
    with evaluation_mode(model), progress("adapters in one layer", total) as advance:
        nats = [partial.whole(batch)[0] for batch in judged.batches]
        base = judged.means(nats, "without adapters")
        for visit in walk(model, layers, [batch.inputs for batch in batches]):
            step = f"capacity-{visit.index:04d}"
            own = [p for p in projections if p.layer == visit.index]
            # Where no adapter can be put, nothing is trained and nothing gained.
            kept = steps.load(step) if own else {"nats": base}
            if kept is None:
                # Not held here, so that they go as the walk makes those of the next layer.
                kept = {"nats": adapted(visit.index, own, list(visit.inputs()), advance)}
                steps.save(step, kept)
            else:
                advance((len(layers) - visit.index) * options.train_steps)
            gains.append((base - kept["nats"]).tolist())
            parameters.append(options.rank * sum(p.in_features + p.out_features for p in own))
    return GroundTruth(
        kind="capacity",
        sparsity=None,
        delta=None,
        training={
            "rank": options.rank,
            "alpha": options.alpha,
            "steps": options.train_steps,
            "rate": options.learning_rate,
            "batch_tokens": options.batch_tokens,
            "rows": len(trained),
            "seed": options.seed,
            "parameters": parameters,
        },
        costs=gains,
        base_loss=base.mean().item(),
        model=describe(model),
        text={**(text or {}), "rows": len(judged), "tokens": judged.tokens},
        setting=setting(model),
    )
