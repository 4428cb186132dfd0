"""From one score per layer to experts, ranks or sparsities, with an exact total."""

from layerif.plans.maps.aggregation import aggregate, check_scores
from layerif.plans.maps.cautions import emptied, flat_scores, reliability, unreliable_scores
from layerif.plans.maps.counts import apportion, apportion_as_authors
from layerif.plans.maps.experts import MOLA_SHAPE, mola_map, power_map
from layerif.plans.maps.experts import uniform_map as uniform_experts
from layerif.plans.maps.ranks import equal_rank, equal_ranks
from layerif.plans.maps.scores import (
    ConstantScoresError,
    minmax,
    orient,
    smoothed,
    smoothing_window,
)
from layerif.plans.maps.sparsity import (
    DLP_LAMBDA,
    OWL_LAMBDA,
    dlp_map,
    layerif_map,
    owl_map,
    project_to_total,
)
from layerif.plans.maps.sparsity import uniform_map as uniform_sparsity

__all__ = [
    "DLP_LAMBDA",
    "MOLA_SHAPE",
    "OWL_LAMBDA",
    "ConstantScoresError",
    "aggregate",
    "apportion",
    "apportion_as_authors",
    "check_scores",
    "dlp_map",
    "emptied",
    "equal_rank",
    "equal_ranks",
    "flat_scores",
    "layerif_map",
    "minmax",
    "mola_map",
    "orient",
    "owl_map",
    "power_map",
    "project_to_total",
    "reliability",
    "smoothed",
    "smoothing_window",
    "uniform_experts",
    "uniform_sparsity",
    "unreliable_scores",
]
