"""What flows between the stages: small, typed, saved as JSON and safetensors, never as pickle."""

from layerif.artifacts.allocation import Allocation
from layerif.artifacts.base import ModelInfo, Record, Setting, versions
from layerif.artifacts.results import Measurement, Results
from layerif.artifacts.scores import LayerScores, ProjectionInfo, ScoringRecord

__all__ = [
    "Allocation",
    "LayerScores",
    "Measurement",
    "ModelInfo",
    "ProjectionInfo",
    "Record",
    "Results",
    "ScoringRecord",
    "Setting",
    "versions",
]
