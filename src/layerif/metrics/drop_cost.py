"""What dropping each layer would cost, predicted to first and second order of the loss."""

from __future__ import annotations

from layerif.metrics.base import Metric, MetricValues, Subject
from layerif.search.depth_question import ask_layers
from layerif.search.slopes import BACKWARD_TOKENS


def drop_cost(subject: Subject) -> MetricValues:
    """Predicted rise of the mean loss of calibration text without each layer.

    With f what a layer adds to the hidden state and e the gradient there of the tokens' losses:
    -mean sum e f + 1/2 mean sum e^2 f^2, over tokens, from one forward and one backward pass.

    Returns:
        Nats a token; none for projections. High: the layer should be kept.

    Raises:
        NumericalError: a loss or a gradient is not finite.
    """
    tokens = min(subject.batch_tokens, BACKWARD_TOKENS)
    found = ask_layers(subject.model, subject.layers, subject.texts, batch_tokens=tokens)
    return MetricValues(found.cost)


DROP_COST = Metric(drop_cost, reads_text=True, reads_weights=False)
