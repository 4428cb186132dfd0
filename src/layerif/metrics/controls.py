"""Controls: scores that know no more of a model than its shape, which a metric has to beat."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerif.core.options import Options
from layerif.metrics.base import Metric, MetricValues, Subject


def uniform(subject: Subject) -> MetricValues:
    """The same score, 1, for every layer and projection; maps of scores refuse it unless told."""
    return MetricValues(np.ones(len(subject.layers)), np.ones(len(subject.layers.projections)))


def random(subject: Subject) -> MetricValues:
    """Scores drawn evenly from [0, 1) by the seed, for layers and projections each by itself."""
    generator = np.random.default_rng(subject.seed)
    layers = generator.random(len(subject.layers))
    return MetricValues(layers, generator.random(len(subject.layers.projections)))


def rule_of_thumb(subject: Subject) -> MetricValues:
    """What llama.cpp's mixes give more bits: in some layers `v_proj` and `down_proj`, by name.

    These layers are the first eighth, the last eighth, and every third between (`use_more_bits` of
    its quantize tool).

    Returns:
        1 for them and 0 for others.
    """
    count, eighth = len(subject.layers), len(subject.layers) // 8

    def more(layer: int) -> bool:
        return layer < eighth or layer >= 7 * count // 8 or (layer - eighth) % 3 == 2

    projections = np.array(
        [
            float(more(p.layer) and p.name.rpartition(".")[2] in ("v_proj", "down_proj"))
            for p in subject.layers.projections
        ]
    )
    return MetricValues(np.array([float(more(layer)) for layer in range(count)]), projections)


class ShuffledOptions(Options):
    """Options of shuffled, beside those of the metric whose scores it shuffles."""

    title = "Metric"

    of: str
    """Metric whose scores are shuffled."""


def shuffled(subject: Subject, *, of: str, **options: Any) -> MetricValues:
    """Another metric's scores in a random order of layers, drawn by the seed.

    Projections go with their layers where all layers have the same ones; else there are none.

    Args:
        subject: what the other metric needs.
        of: its name.
        options: its options.

    Returns:
        Values in the other metric's unit.
    """
    from layerif.metrics.registry import METRICS

    layers = subject.layers
    values = METRICS.find(of).function(subject, **options)
    order = np.random.default_rng(subject.seed).permutation(len(layers))
    kinds = [[(p.name, p.numel) for p in layers.of(layer)] for layer in range(len(layers))]
    projections = values.projections
    if projections is not None:
        alike = all(kind == kinds[0] for kind in kinds)
        projections = projections.reshape(len(order), -1)[order].flatten() if alike else None
    return MetricValues(values.layers[order], projections)


UNIFORM = Metric(uniform, reads_weights=False)
RANDOM = Metric(random, reads_weights=False, seeded=True)
RULE_OF_THUMB = Metric(rule_of_thumb, reads_weights=False)
SHUFFLED = Metric(shuffled, ShuffledOptions, reads_weights=False, seeded=True, of_another=True)
