"""Influence at the operating point: what weights are worth to the model as it is pruned."""

from layerif.marginal.evolution import Evolution, evolve
from layerif.marginal.operating_point import OperatingPoint
from layerif.marginal.order import RemovalOrder, SaliencyMethod
from layerif.marginal.planning import Granularity
from layerif.marginal.rounds import allocate_marginal
from layerif.marginal.sensitivity import Sensitivities, mean_loss, sensitivities

__all__ = [
    "Evolution",
    "Granularity",
    "OperatingPoint",
    "RemovalOrder",
    "SaliencyMethod",
    "Sensitivities",
    "allocate_marginal",
    "evolve",
    "mean_loss",
    "sensitivities",
]
