"""Influence at the operating point as a metric: what the next weights are worth once pruned."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from layerif.compress.pruning.compressor import PruningCompressor
from layerif.compress.pruning.options import MethodOptions
from layerif.core.options import Options
from layerif.metrics.base import Metric, MetricValues, Subject
from layerif.search.options import SearchOptions
from layerif.search.slopes import BACKWARD_TOKENS, slopes
from layerif.search.sparsity import SparsityKind


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
        NumericalError: a loss or a value is not finite.
    """
    model, layers = subject.model, subject.layers
    by_layer, by_projection = (
        SparsityKind.among(layers, sparsity, SearchOptions(granularity=each))
        for each in ("layer", "projection")
    )
    state = by_projection.start()
    around = replace(by_projection, delta=delta).around(state)
    with PruningCompressor.held(model, layers, subject.batches, MethodOptions()) as compressor:
        changes = compressor.at(
            by_projection.levels(state), lambda row, projection: projection.change(*around[row])
        )
        tokens = min(subject.batch_tokens, BACKWARD_TOKENS)
        products = slopes(model, changes, subject.texts, batch_tokens=tokens)
    return MetricValues(by_layer.worth(products, around), by_projection.worth(products, around))


MARGINAL = Metric(marginal, MarginalOptions, reads_text=True)
