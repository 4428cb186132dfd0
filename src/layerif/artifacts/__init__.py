"""What flows between the stages: small, typed, saved as JSON and safetensors, never as pickle."""

from layerif.artifacts.depth import DroppedLayers
from layerif.artifacts.finetuning import (
    FINETUNING_FILE,
    Finetuning,
    RouterLoad,
    RoutingUse,
    StepLoss,
    ValidationLoss,
)
from layerif.artifacts.folder import MANIFEST_FILE
from layerif.artifacts.gradients import GradientsRecord, MatrixRecord, ProjectionInfo
from layerif.artifacts.ground_truth import Agreement, GroundTruth
from layerif.artifacts.kinds import (
    ADAPTER,
    CARD_FILE,
    CONVERTED,
    DROPPED,
    GRADIENTS,
    PRUNED,
    QUANTIZED,
    SCORES,
)
from layerif.artifacts.manifest import Manifest, PrunedModule
from layerif.artifacts.plan import ModuleLevel, ModuleSparsity, Plan, module_level
from layerif.artifacts.quantized import Matrix, QuantizedManifest, QuantizedModule
from layerif.artifacts.results import Comparison, Comparisons, Measurement, Outcomes, Results
from layerif.artifacts.scores import (
    METRIC_FORMAT,
    BlockRecord,
    DampingSweep,
    LayerScores,
    MetricScores,
    ProjectionScore,
    ScoringRecord,
)
from layerif.core.fingerprint import Fingerprint, hash_model, hash_texts
from layerif.core.record import ModelInfo, Record, Setting, versions
