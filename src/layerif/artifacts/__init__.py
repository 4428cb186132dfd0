"""What flows between the stages: small, typed, saved as JSON and safetensors, never as pickle."""

from layerif.artifacts.comparison import Comparison, Comparisons
from layerif.artifacts.finetuning import (
    FINETUNING_FILE,
    Finetuning,
    StepLoss,
    ValidationLoss,
)
from layerif.artifacts.ground_truth import Agreement, GroundTruth
from layerif.artifacts.kinds import ADAPTER, CARD_FILE, CONVERTED, PRUNED, SCORES
from layerif.artifacts.manifest import MANIFEST_FILE, Manifest, PrunedModule
from layerif.artifacts.metric import METRIC_FORMAT, MetricScores, ProjectionScore
from layerif.artifacts.plan import ModuleSparsity, Plan
from layerif.artifacts.results import Measurement, Outcomes, Results
from layerif.artifacts.routing import RouterLoad, RoutingUse
from layerif.artifacts.scores import (
    BlockRecord,
    DampingSweep,
    LayerScores,
    ProjectionInfo,
    ScoringRecord,
)
from layerif.core.fingerprint import Fingerprint, hash_model, hash_texts
from layerif.core.record import ModelInfo, Record, Setting, versions

__all__ = [
    "ADAPTER",
    "CARD_FILE",
    "CONVERTED",
    "FINETUNING_FILE",
    "MANIFEST_FILE",
    "METRIC_FORMAT",
    "PRUNED",
    "SCORES",
    "Agreement",
    "BlockRecord",
    "Comparison",
    "Comparisons",
    "DampingSweep",
    "Finetuning",
    "Fingerprint",
    "GroundTruth",
    "LayerScores",
    "Manifest",
    "Measurement",
    "MetricScores",
    "ModelInfo",
    "ModuleSparsity",
    "Outcomes",
    "Plan",
    "ProjectionInfo",
    "ProjectionScore",
    "PrunedModule",
    "Record",
    "Results",
    "RouterLoad",
    "RoutingUse",
    "ScoringRecord",
    "Setting",
    "StepLoss",
    "ValidationLoss",
    "hash_model",
    "hash_texts",
    "versions",
]
