"""Outlier ratio, the layer metric of OWL (arXiv 2310.05175)."""

from __future__ import annotations

from math import fsum
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from layerif.core.options import Options
from layerif.metrics.base import Metric, MetricValues, Subject
from layerif.metrics.saliency import layer_saliencies


class OutlierRatioOptions(Options):
    """Options of outlier_ratio."""

    title = "Metric"

    # The paper's; its code takes 3 unless told otherwise.
    multiple: Annotated[float, Field(gt=0)] = 5.0
    """M: a weight is an outlier above M times the mean."""


def outlier_ratio(subject: Subject, *, multiple: float) -> MetricValues:
    """Percentage of a layer's weights whose saliency exceeds `multiple` times the layer's mean.

    OWL (arXiv 2310.05175): with A = |W_ij| |X_j|_2 over all projections of a layer together,
    D = 100 mean(A > M mean(A)). A projection's value is the same over its own weights
    alone, against their mean, so the projections' values do not make up the layer's.

    Args:
        subject: the model, with calibration text.
        multiple: M, positive.

    Returns:
        Values in percent, 0 to 100. High: many outliers, which pruning should spare.

    Raises:
        NumericalError: the inputs of a projection are not finite, or it is never run.
    """
    layers, projections = [], []
    for found in layer_saliencies(subject):
        sums = [float(found.of(p).sum(dtype=torch.float64)) for p in found.projections]
        size = sum(p.numel for p in found.projections) or 1  # a layer without any has ratio 0
        bound = multiple * fsum(sums) / size
        outliers = 0
        for projection, own in zip(found.projections, sums, strict=True):
            saliency = found.of(projection)
            outliers += int((saliency > bound).sum())
            above = int((saliency > multiple * own / projection.numel).sum())
            projections.append(100 * above / projection.numel)
        layers.append(100 * outliers / size)
    return MetricValues(np.array(layers), np.array(projections))


OUTLIER_RATIO = Metric(outlier_ratio, OutlierRatioOptions, reads_text=True)
