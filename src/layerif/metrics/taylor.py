"""What dropping each layer would cost to first order, as in Shortened LLaMA (arXiv 2402.02834)."""

from __future__ import annotations

import numpy as np

from layerif.metrics.base import Metric, MetricValues, Subject
from layerif.search.depth_question import ask_layers
from layerif.search.slopes import BACKWARD_TOKENS


def taylor(subject: Subject) -> MetricValues:
    """|dL/dm| at m = 1 of a gate on what each layer adds to its input, h + m f(h).

    L is the mean loss of a token of calibration text, in nats. Dropping a layer is no small change,
    so first order ranks layers badly; `drop_cost` adds the second.

    Returns:
        Nats a token; none for projections. High: the loss depends on the layer.

    Raises:
        NumericalError: a loss or a gradient is not finite.
    """
    tokens = min(subject.batch_tokens, BACKWARD_TOKENS)
    found = ask_layers(subject.model, subject.layers, subject.texts, batch_tokens=tokens)
    return MetricValues(np.abs(found.slope))


TAYLOR = Metric(taylor, reads_text=True, reads_weights=False)
