"""The subspaces in which gradients are compared: which matrices would be trained."""

from layerif.influence.subspaces.adapter import AdapterSubspace
from layerif.influence.subspaces.base import Matrix, Subspace
from layerif.influence.subspaces.choosing import check_combination, subspace_of
from layerif.influence.subspaces.full import FullWeights
from layerif.influence.subspaces.lora import FreshLora
from layerif.influence.subspaces.projected import TwoSided

__all__ = [
    "AdapterSubspace",
    "FreshLora",
    "FullWeights",
    "Matrix",
    "Subspace",
    "TwoSided",
    "check_combination",
    "subspace_of",
]
