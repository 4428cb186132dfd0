"""Layer-wise influence: how training samples move the validation loss through each layer."""

from layerif.influence.estimators import register as register_estimator
from layerif.influence.scoring import check_samples, score
from layerif.influence.subspaces import FreshLora, check_combination

__all__ = ["FreshLora", "check_combination", "check_samples", "register_estimator", "score"]
