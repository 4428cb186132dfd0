"""Where the parameters of adapters pay: what a first step in fresh LoRAs gains in each layer."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from layerif.core.checkpoint import NO_STEPS
from layerif.core.options import Options
from layerif.core.progress import progress
from layerif.influence.collecting import mean_gradients
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.preparing import Runner, Samples
from layerif.influence.subspaces.lora import FreshLora
from layerif.metrics.base import Metric, MetricValues, Subject
from layerif.model.opening import input_device


class AdapterGainOptions(Options):
    """Options of adapter_gain."""

    title = "Metric"

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the LoRA."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Alpha of the LoRA."""


def adapter_gain(subject: Subject, *, rank: int, alpha: float) -> MetricValues:
    """Predicted fall of the validation loss per parameter of an adapter, at the start of training.

    With a fresh LoRA (B = 0) on every projection only B has a gradient. A step of gradient descent
    on the training loss, B <- -eta g_train, lowers the validation loss by eta <g_train, g_val> to
    first order; the value is that product over r (d_in + d_out), the parameters of the projection's
    LoRA. For a layer both are sums over its projections. Two sets of samples, since |g|^2 of one
    set counts the noise of its own draw as gain; the product does not.

    It is LayerIF's influence by another name: n gain_l params_l is the aggregation `all` of the
    estimator `grad_dot` for n training samples. Over draws of A its mean is known: with
    Var(A) = 1 / (3 d_in), (alpha / r)^2 r <dL_train/dW, dL_val/dW> / (3 d_in) for a projection.

    Args:
        subject: the dense model, with samples of a task, or calibration text of which one half
            takes the place of training samples and the other of validation samples.
        rank, alpha: of the LoRA; its A is drawn by the seed and the projection's name.

    Returns:
        Nats a token, per parameter and unit of learning rate. High: the layer wants capacity.
        Negative: a step on the training samples does harm there.

    Raises:
        InputError: a rank or alpha out of its range, or no samples.
        NumericalError: a loss or a gradient is not finite.
    """
    projections = subject.layers.projections
    matrices = FreshLora(rank, alpha, subject.seed).matrices(projections)
    train, validation = (
        Samples.of(items, subject.batch_tokens, subject.model) for items in subject.samples
    )
    total = train.tokens + validation.tokens
    with (
        frozen(subject.model),
        PerSampleGradients(subject.model, projections, matrices) as per_sample,
        progress("gradients", total) as advance,
    ):
        runner = Runner(per_sample, input_device(subject.model), "right", total, advance)
        steps, _ = mean_gradients(runner, matrices, train, "training", NO_STEPS)
        slopes, _ = mean_gradients(runner, matrices, validation, "validation", NO_STEPS)
    falls = np.array([float(step @ slope) for step, slope in zip(steps, slopes, strict=True)])
    sizes = np.array([rank * (p.in_features + p.out_features) for p in projections])
    owners = [p.layer for p in projections]
    fall, size = (np.bincount(owners, v, len(subject.layers)) for v in (falls, sizes))
    # A layer without projections gains nothing.
    return MetricValues(layers=fall / size.clip(min=1), projections=falls / sizes)


ADAPTER_GAIN = Metric(
    adapter_gain,
    AdapterGainOptions,
    reads_text=True,
    takes_samples=True,
    reads_weights=False,
    seeded=True,
)
