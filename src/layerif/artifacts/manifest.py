"""The manifest of a pruned model: what was planned, what was really done, and by what means."""

from __future__ import annotations

from typing import Any, Literal

from layerif.artifacts.allocation import Allocation
from layerif.artifacts.base import JsonArtifact, ModelInfo, Record, Setting
from layerif.artifacts.fingerprint import Fingerprint

MANIFEST_FILE = "layerif_manifest.json"


class PrunedModule(Record):
    """One pruned projection: zeros asked for, zeros counted afterwards, and all its weights."""

    module: str
    asked: int
    zeros: int
    numel: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.numel


class Manifest(JsonArtifact):
    """Everything needed to tell how a pruned model came to be.

    Attributes:
        model: the dense model.
        plan: the sparsity asked of each layer.
        method: the pruner.
        sparsity: fraction of zeros over all projections of the decoder layers, counted.
        modules: the same for each projection.
        calibration: text, tokens and seed that the statistics come from.
        fingerprint: what all of it depends on; None for a model pruned in memory.
    """

    format: Literal["layerif.manifest/1"] = "layerif.manifest/1"
    model: ModelInfo
    plan: Allocation
    method: str
    sparsity: float
    modules: list[PrunedModule]
    calibration: dict[str, Any]
    seconds: float
    setting: Setting
    fingerprint: Fingerprint | None = None
