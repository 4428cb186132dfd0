"""Layer-wise influence: how training samples move the validation loss through each layer."""

from layerif.influence.doctor import Diagnosis, examine
from layerif.influence.estimators import register as register_estimator
from layerif.influence.scoring import check_samples, score
from layerif.influence.subspaces import FreshLora, check_combination

__all__ = [
    "Diagnosis",
    "FreshLora",
    "check_combination",
    "check_samples",
    "examine",
    "register_estimator",
    "score",
]
