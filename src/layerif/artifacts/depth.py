"""The manifest of a model with layers dropped: which they were, and by what plan."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from layerif.artifacts.folder import FolderManifest
from layerif.artifacts.plan import Plan
from layerif.core.fingerprint import Fingerprint
from layerif.core.record import ModelInfo, Setting


class DroppedLayers(FolderManifest):
    """Everything needed to tell which layers of which model a folder holds.

    Attributes:
        model: the whole model.
        plan: of kind depth, 1 for each layer kept and 0 for each dropped.
        kept: indices in the whole model of the layers that are left, in order: layer i of the
            folder is layer `kept[i]` there.
        parameters: of the model that is left, and of the whole one.
        precision: that the weights are stored in, where it is narrower than the one of `setting`.
        merged: the LoRA that was merged into the weights afterwards; None where none was.
        fingerprint: what all of it depends on.
    """

    holds = "model with layers dropped"
    written_by = "layerif drop"

    format: Literal["layerif.dropped/1"] = "layerif.dropped/1"
    model: ModelInfo
    plan: Plan
    kept: list[int] = Field(min_length=1)
    parameters: tuple[int, int]
    setting: Setting
    precision: str | None = None
    merged: str | None = None
    fingerprint: Fingerprint | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kept != self.plan.kept_layers():
            raise ValueError("the layers that are kept are not those of the plan")
        return self

    @property
    def dropped(self) -> list[int]:
        """Indices in the whole model of the layers that are gone."""
        return [layer for layer in range(self.model.layers) if layer not in self.kept]
