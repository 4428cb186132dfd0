"""Layer-wise influence: how training samples move the validation loss through each layer."""

from layerif.influence.doctor import Diagnosis, examine
from layerif.influence.estimators import register as register_estimator
from layerif.influence.scoring import score
from layerif.influence.subspaces import FreshLora, check_combination

__all__ = [
    "Diagnosis",
    "FreshLora",
    "check_combination",
    "examine",
    "register_estimator",
    "score",
]
