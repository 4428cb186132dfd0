"""|W_ij| |X_j|_2 of the projections of one layer at a time, on the dense model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from layerif.calibration.statistics import InputNorms
from layerif.compress.pruning.wanda import wanda_saliency
from layerif.metrics.base import Subject
from layerif.model.layers import Projection


@dataclass(frozen=True, eq=False)
class LayerSaliencies:
    """The saliencies of one layer's weights; each projection's are made when asked for."""

    index: int
    projections: Sequence[Projection]
    _statistics: InputNorms

    @torch.no_grad()
    def of(self, projection: Projection) -> torch.Tensor:
        """(out, in) |W_ij| |X_j|_2, float32 at least.

        Raises:
            NumericalError: as `InputNorms.norms`.
        """
        weight = projection.weight
        return wanda_saliency(weight, self._statistics.norms(projection).to(weight.device))


def layer_saliencies(subject: Subject) -> Iterator[LayerSaliencies]:
    """Layer after layer, from the bottom up; statistics of one layer are in memory at a time."""
    for visit in subject.visits():
        projections = subject.layers.of(visit.index)
        statistics = InputNorms(projections)
        visit.observe(statistics)
        yield LayerSaliencies(visit.index, projections, statistics)
