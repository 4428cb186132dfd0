"""Influence at the operating point: what weights are worth to the model as it is pruned."""

from layerif.search.evolution import Evolution, evolve
from layerif.search.operating_point import OperatingPoint
from layerif.search.order import Band, Prunable, RemovalOrder
from layerif.search.refitting import Refitting
from layerif.search.rounds import BACKWARD_TOKENS, allocate_marginal
from layerif.search.sensitivity import Sensitivities, mean_loss, sensitivities

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
