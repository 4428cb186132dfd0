"""Layer-wise influence: how training samples move the validation loss through each layer."""

from layerif.influence.datainf import datainf
from layerif.influence.scoring import check_samples, score
from layerif.influence.subspace import FreshLora

__all__ = ["FreshLora", "check_samples", "datainf", "score"]
