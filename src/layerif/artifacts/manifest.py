"""The manifest of a pruned model: what was planned, what was really done, and by what means."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from layerif.artifacts.folder import FolderManifest
from layerif.artifacts.naming import OfModule, check_modules
from layerif.artifacts.plan import Plan
from layerif.core.fingerprint import Fingerprint
from layerif.core.record import ModelInfo, Setting


class PrunedModule(OfModule):
    """One pruned projection: zeros asked for, zeros counted afterwards, and all its weights.

    Attributes:
        pattern: the N:M that its weights keep to; None where zeros lie anywhere.
        error: |(W - W') X|^2 / |W X|^2 over the calibration tokens; by wanda as if the features of
            X had no correlation, and None by magnitude, which sees no text.
        damping: the share of its mean diagonal that was added to the Hessian; None without one.
        seconds: that choosing and changing its weights took, statistics aside.
    """

    asked: int
    zeros: int
    numel: int = Field(ge=1)
    pattern: str | None = None
    error: float | None = None
    damping: float | None = None
    seconds: float | None = None

    @property
    def sparsity(self) -> float:
        return self.zeros / self.numel


class Manifest(FolderManifest):
    """Everything needed to tell how a pruned model came to be.

    Attributes:
        model: the dense model.
        plan: the sparsity asked of each layer.
        method: the pruner.
        nm: the pattern that was asked for; None for zeros anywhere.
        sparsity: fraction of zeros over all projections of the decoder layers, counted.
        modules: the same for each projection.
        dense: name and size of other weights of two dimensions and more in the decoder layers,
            which are left as they are: convolutions, state-space parameters, routers.
        calibration: text, tokens and seed that the statistics come from; empty without any.
        precision: that the weights are stored in, where it is narrower than the one of `setting`,
            which they were pruned in.
        merged: the LoRA that was merged into the weights afterwards; None where none was.
        fingerprint: what all of it depends on; None for a model pruned in memory.
    """

    holds = "pruned model"
    written_by = "layerif prune"

    format: Literal["layerif.manifest/1"] = "layerif.manifest/1"
    model: ModelInfo
    plan: Plan
    method: str
    nm: str | None = None
    sparsity: float
    modules: list[PrunedModule] = Field(min_length=1)
    dense: dict[str, int] = Field(default_factory=dict)
    calibration: dict[str, Any]
    seconds: float
    setting: Setting
    precision: str | None = None
    merged: str | None = None
    fingerprint: Fingerprint | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_modules(self.modules, len(self.plan.allocation))
        return self

    @property
    def planned_sparsity(self) -> float:
        """Fraction of zeros over all projections by the plan, before any rounding."""
        asked = (self.plan.level_of(m.module) * m.numel for m in self.modules)
        return math.fsum(asked) / sum(m.numel for m in self.modules)

    @property
    def asked_sparsity(self) -> float:
        """Fraction of zeros asked for over all projections, after rounding to whole weights or N:M.

        With N:M the nearest to the plan that can be had.
        """
        return sum(m.asked for m in self.modules) / sum(m.numel for m in self.modules)
