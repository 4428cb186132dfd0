"""Importance by the middle of the saliencies, the layer metric of DLP (arXiv 2505.23807)."""

from __future__ import annotations

from math import fsum
from typing import Any

import numpy as np
import torch

from layerif.core.choices import DlpStatistic, check_choice
from layerif.core.options import Options
from layerif.errors import InputError
from layerif.metrics.base import FloatArray, Metric, MetricValues, Subject
from layerif.metrics.saliency import layer_saliencies


class DlpOptions(Options):
    """Options of dlp."""

    title = "Metric"

    statistic: DlpStatistic = "median"
    """The middle of a layer's saliencies."""


def dlp(subject: Subject, *, statistic: DlpStatistic = "median") -> MetricValues:
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
        InputError: no such statistic, or one that is 0 everywhere.
        NumericalError: the inputs of a projection are not finite, or it is never run.
    """
    check_choice(statistic, DlpStatistic, "statistic")
    middle = median if statistic == "median" else _mean
    layers, projections = [], []
    for found in layer_saliencies(subject):
        every = [found.of(p).flatten() for p in found.projections]
        projections += [middle(own) for own in every]
        device = every[0].device
        layers.append(middle(torch.cat([own.to(device) for own in every])))
    return MetricValues(
        _relative(layers, statistic, "layers"), _relative(projections, statistic, "projections")
    )


def median(values: torch.Tensor) -> float:
    """The median of all entries, of an even number the mean of the middle two."""
    flat, half = values.flatten(), values.numel() // 2
    upper = float(flat.kthvalue(half + 1).values)
    return upper if values.numel() % 2 else (float(flat.kthvalue(half).values) + upper) / 2


def _mean(values: torch.Tensor) -> float:
    return float(values.mean(dtype=torch.float64))


def _relative(middles: list[Any], statistic: str, what: str) -> FloatArray:
    total = fsum(middles)
    if total == 0:
        raise InputError(
            f"the {statistic} saliency of all {what} is 0, so there is nothing to compare; measure "
            "the model before it is pruned, or choose the mean"
        )
    return 1 - np.array(middles) / total


DLP = Metric(dlp, DlpOptions, reads_text=True)
