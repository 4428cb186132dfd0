"""What is known of collected gradients beside the gradients themselves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from layerif.artifacts.scores import ProjectionInfo
from layerif.core.fingerprint import Fingerprint
from layerif.core.record import JsonArtifact, ModelInfo, Record, Setting

GRADIENTS_FILE = "gradients.json"


class MatrixRecord(Record):
    """One trainable matrix of the subspace.

    Attributes:
        key: its name.
        projection: the row of its projection among all.
        shape: (out, in) of the matrix, and so of its gradient.
    """

    key: str
    projection: int = Field(ge=0)
    shape: tuple[int, int]


class GradientsRecord(JsonArtifact):
    """Whose gradients were collected, and how: all that they depend on.

    Attributes:
        model, setting: the model, and what it ran on.
        projections: of its decoder layers.
        matrices: whose gradients these are.
        dtype: of the numbers in the file.
        subspace, subspace_options: that the matrices belong to.
        seed: of the subspace and of the samples' draw.
        max_length: tokens kept of an example.
        task: name and origin of the examples; None for examples handed over in memory.
        train_samples, validation_samples: how many were used.
        dropped_train, dropped_validation: indices of examples that did not fit `max_length`.
        validation_loss: mean completion loss of the validation samples, nats per token.
        seconds: that collecting took.
        fingerprint: what all of it depends on; None in memory.
    """

    format: Literal["layerif.gradients/1"] = "layerif.gradients/1"
    model: ModelInfo
    setting: Setting
    projections: list[ProjectionInfo]
    matrices: list[MatrixRecord]
    dtype: str
    subspace: str
    subspace_options: dict[str, Any]
    seed: int
    max_length: int
    task: dict[str, Any] | None
    train_samples: int
    validation_samples: int
    dropped_train: list[int]
    dropped_validation: list[int]
    validation_loss: float = 0.0
    seconds: float = 0.0
    fingerprint: Fingerprint | None = None
