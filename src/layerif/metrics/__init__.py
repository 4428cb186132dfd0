"""Metrics of layers other than influence: baselines and controls, or one's own."""

from layerif.metrics.base import Metric, MetricValues, Subject
from layerif.metrics.measuring import metric_scores
from layerif.metrics.pl_alpha import eigenvalues, hill_alpha
from layerif.metrics.registry import (
    complete_options,
    find,
    is_seeded,
    names,
    reads_model,
    reads_text,
    register_metric,
    takes_samples,
)
from layerif.metrics.saliency import LayerSaliencies, layer_saliencies

__all__ = [
    "LayerSaliencies",
    "Metric",
    "MetricValues",
    "Subject",
    "complete_options",
    "eigenvalues",
    "find",
    "hill_alpha",
    "is_seeded",
    "layer_saliencies",
    "metric_scores",
    "names",
    "reads_model",
    "reads_text",
    "register_metric",
    "takes_samples",
]
