"""Budgets: from one score per layer to experts, ranks or sparsities, with an exact total."""

from layerif.budgets.cautions import emptied, flat_scores, reliability, unreliable_scores
from layerif.budgets.counts import apportion, apportion_as_authors
from layerif.budgets.experts import MOLA_SHAPE, mola_map, power_map
from layerif.budgets.experts import uniform_map as uniform_experts
from layerif.budgets.ranks import equal_rank, equal_ranks
from layerif.budgets.scores import (
    ConstantScoresError,
    aggregate,
    check_scores,
    minmax,
    orient,
    smooth,
    smoothing_window,
)
from layerif.budgets.sparsity import (
    DLP_LAMBDA,
    OWL_LAMBDA,
    dlp_map,
    layerif_map,
    owl_map,
    project_to_total,
)
from layerif.budgets.sparsity import uniform_map as uniform_sparsity

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
    "smooth",
    "smoothing_window",
    "uniform_experts",
    "uniform_sparsity",
    "unreliable_scores",
]
