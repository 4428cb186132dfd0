"""Layer-wise influence: how training samples move the validation loss through each layer."""

from layerif.influence.datainf import datainf
from layerif.influence.scoring import score
from layerif.influence.subspace import FreshLora

__all__ = ["FreshLora", "datainf", "score"]
