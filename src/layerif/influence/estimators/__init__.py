"""From the gradients of one block to the influence of each sample: one file an estimator."""

from layerif.influence.estimators.base import Damping, EstimatorOptions, Solution
from layerif.influence.estimators.block import Block, Factors, Part
from layerif.influence.estimators.ekfac import FactorPasses
from layerif.influence.estimators.passes import Passes
from layerif.influence.estimators.registry import Estimator, checked_options, find, names, register
from layerif.influence.estimators.sweep import rank_stability, sweep

__all__ = [
    "Block",
    "Damping",
    "Estimator",
    "EstimatorOptions",
    "FactorPasses",
    "Factors",
    "Part",
    "Passes",
    "Solution",
    "checked_options",
    "find",
    "names",
    "rank_stability",
    "register",
    "sweep",
]
