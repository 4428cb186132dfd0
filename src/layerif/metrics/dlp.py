"""Importance by the middle of the saliencies, the layer metric of DLP (arXiv 2505.23807)."""

from __future__ import annotations

from math import fsum

import numpy as np
import torch

from layerif.core.choices import DlpStatistic
from layerif.core.options import Options
from layerif.errors import InputError
from layerif.metrics.base import Metric, MetricValues, Subject
from layerif.metrics.saliency import layer_saliencies


class DlpOptions(Options):
    """Options of dlp."""

    title = "Metric"

    statistic: DlpStatistic = "median"
    """The middle of a layer's saliencies."""


def dlp(subject: Subject, *, statistic: DlpStatistic) -> MetricValues:
    """One minus a layer's share in the sum of the layers' middle saliencies.

    DLP (arXiv 2505.23807): with A = |W_ij| |X_j|_2 over all projections of layer l together and m
    its median, r_l = 1 - m(A_l) / sum_l m(A_l). A projection's value is the same with A over its
    own weights and the sum over all projections, so these do not make up the layer's. The
    saliencies of one layer are in memory at a time.

    Args:
        subject: the model, with calibration text.
        statistic: m, the `median` of the paper (of an even number the mean of the middle two) or
            the `mean` of its code.

    Returns:
        Values without a unit, 0 to 1. High: important, which pruning should spare.

    Raises:
        InputError: the statistic is 0 everywhere.
        NumericalError: the inputs of a projection are not finite, or it is never run.
    """
    middle = median if statistic == "median" else _mean
    layers: list[float] = []
    projections: list[float] = []
    for found in layer_saliencies(subject):
        every = [found.of(p).flatten() for p in found.projections]
        if not every:
            layers.append(0.0)
            continue
        projections += [middle(own) for own in every]
        device = every[0].device
        layers.append(middle(torch.cat([own.to(device) for own in every])))
    if not any(projections) or not any(layers):
        raise InputError(
            f"the {statistic} saliency is 0 everywhere, so there is nothing to compare; measure "
            "the model before it is pruned, or choose the mean"
        )
    return MetricValues(*(1 - np.array(each) / fsum(each) for each in (layers, projections)))


def median(values: torch.Tensor) -> float:
    """The median of all entries, of an even number the mean of the middle two."""
    flat, half = values.flatten(), values.numel() // 2
    upper = float(flat.kthvalue(half + 1).values)
    return upper if values.numel() % 2 else (float(flat.kthvalue(half).values) + upper) / 2


def _mean(values: torch.Tensor) -> float:
    return float(values.mean(dtype=torch.float64))


DLP = Metric(dlp, DlpOptions, reads_text=True)
