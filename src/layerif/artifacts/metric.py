"""MetricScores: one number a layer from a metric other than influence; a JSON file."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from layerif.artifacts.naming import OfModule, check_modules
from layerif.core.fingerprint import Fingerprint
from layerif.core.record import JsonArtifact, ModelInfo, Setting

METRIC_FORMAT: Literal["layerif.metric/1"] = "layerif.metric/1"


class ProjectionScore(OfModule):
    """The score of one projection, by its canonical name (`layers.7.mlp.up_proj`), and its size."""

    score: float
    numel: int = Field(ge=1)


class MetricScores(JsonArtifact):
    """How a metric ranks the decoder layers of a model, and their projections.

    Attributes:
        metric: its name.
        options: its parameters.
        scores: one number a layer, in the metric's own unit.
        projections: one number a projection, layer by layer; None for a metric that knows layers
            alone. Only where the metric says so do these make up the layer's.
        model: of which model.
        calibration: text, tokens and seed that the activations come from, or task and number of its
            samples; None where the metric needs none.
        fingerprint: what all of it depends on; None for a model measured in memory.
    """

    format: Literal["layerif.metric/1"] = METRIC_FORMAT
    metric: str
    options: dict[str, Any] = Field(default_factory=dict)
    scores: list[float] = Field(min_length=1)
    projections: list[ProjectionScore] | None = None
    model: ModelInfo
    calibration: dict[str, Any] | None = None
    seconds: float
    setting: Setting
    fingerprint: Fingerprint | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.scores) != self.model.layers:
            raise ValueError(
                f"there are {len(self.scores)} scores, but {self.model.name} has "
                f"{self.model.layers} decoder layers"
            )
        if self.projections is not None:
            check_modules(self.projections, self.model.layers)
            sizes = [0] * self.model.layers
            for projection in self.projections:
                sizes[projection.layer] += projection.numel
            if sizes != self.model.layer_sizes:
                raise ValueError(
                    f"the projections have {sizes} parameters in each layer; expected "
                    f"{self.model.layer_sizes}"
                )
        return self
