"""Influence at the operating point: what weights are worth to the model as it is pruned."""

from layerif.marginal.evolution import Evolution, evolve
from layerif.marginal.operating_point import OperatingPoint
from layerif.marginal.order import Band, Prunable, RemovalOrder
from layerif.marginal.refitting import Refitting
from layerif.marginal.rounds import BACKWARD_TOKENS, allocate_marginal
from layerif.marginal.sensitivity import Sensitivities, mean_loss, sensitivities

__all__ = [
    "BACKWARD_TOKENS",
    "Band",
    "Evolution",
    "OperatingPoint",
    "Prunable",
    "Refitting",
    "RemovalOrder",
    "Sensitivities",
    "allocate_marginal",
    "evolve",
    "mean_loss",
    "sensitivities",
]
