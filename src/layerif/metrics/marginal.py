"""Influence at the operating point as a metric: what the next weights are worth once pruned."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from layerif.core.options import Options
from layerif.errors import InputError
from layerif.metrics.base import Metric, MetricValues, Subject
from layerif.search.operating_point import OperatingPoint
from layerif.search.order import Prunable
from layerif.search.rounds import BACKWARD_TOKENS
from layerif.search.sensitivity import sensitivities


class MarginalOptions(Options):
    """Options of marginal."""

    title = "Metric"

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Sparsity of every layer at the operating point."""
    delta: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Half the width of the band of weights, as a share of a projection's."""


def marginal(subject: Subject, *, sparsity: float, delta: float) -> MetricValues:
    """Predicted change of the loss per unit of density, of the model pruned uniformly by Wanda.

    The loss is that of the calibration text. A unit of density is as many weights as a layer, or a
    projection, has on average. The model is left as before.

    Args:
        subject: the dense model and its text.
        sparsity: of every projection, above 0 and below 1.
        delta: half the width of the band of weights, as a fraction of a projection's.

    Returns:
        Nats a token. High, and mostly least negative: the next weights are worth little, so that
        the layer can be pruned more.

    Raises:
        InputError: sparsity or delta is out of its range.
        NumericalError: a loss or a value is not finite.
    """
    if not 0 < sparsity < 1 or not 0 < delta <= 0.5:
        raise InputError(
            f"the sparsity is {sparsity:g} and delta {delta:g}; right would be a sparsity between "
            "0 and 1, and a delta above 0 and at most 0.5"
        )
    model, batches = subject.model, subject.batches
    projections = subject.layers.projections
    bands = {}
    with OperatingPoint.held(model, subject.layers, batches, "wanda") as point:

        def see(row: int, prunable: Prunable) -> None:
            bands[row] = prunable.band(sparsity, delta)

        point.prune([sparsity] * len(projections), see)
        kept = [bands[row] for row in range(len(projections))]
        tokens = min(subject.batch_tokens, BACKWARD_TOKENS)
        found = sensitivities(point, kept, subject.texts, batch_tokens=tokens)
    owners = np.array([p.layer for p in projections])
    whole = sum(p.numel for p in projections)
    return MetricValues(
        layers=found.per_density(owners, whole / len(subject.layers)),
        projections=found.per_density(np.arange(len(projections)), whole / len(projections)),
    )


MARGINAL = Metric(marginal, MarginalOptions, reads_text=True)
