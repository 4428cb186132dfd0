"""Block influence, the layer metric of ShortGPT (arXiv 2403.03853)."""

from __future__ import annotations

import numpy as np
import torch

from layerif.errors import NumericalError
from layerif.metrics.base import Metric, MetricValues, Subject


@torch.no_grad()
def block_influence(subject: Subject) -> MetricValues:
    """How far a layer turns the hidden state: 1 - cos(input, output), the mean over tokens.

    ShortGPT (arXiv 2403.03853). In float64, since in the middle of a model the cosine is near 1. A
    hidden state that is all zeros has no direction, and counts as one that is turned by 90 degrees.

    Returns:
        Values without a unit, 0 to 2; none for projections. High: the layer does much.

    Raises:
        NumericalError: a hidden state is not finite.
    """
    values = []
    for visit in subject.visits():
        total, tokens = 0.0, 0
        for before, after in zip(visit.inputs(), visit.run(), strict=True):
            x, y = before.double(), after.to(before.device).double()
            product = x.norm(dim=-1) * y.norm(dim=-1)
            cosine = (x * y).sum(-1) / product.where(product > 0, 1)
            total += float((1 - cosine).sum())
            tokens += cosine.numel()
        value = total / tokens
        if not np.isfinite(value):
            raise NumericalError(
                f"the hidden states of layer {visit.index} on the calibration text are not finite; "
                "try dtype='float32'"
            )
        values.append(value)
    return MetricValues(np.array(values))


BLOCK_INFLUENCE = Metric(block_influence, reads_text=True, reads_weights=False)
