"""What is known of collected gradients beside the gradients themselves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from layerif.core.fingerprint import Fingerprint
from layerif.core.record import JsonArtifact, ModelInfo, Record, Setting

# Of a run folder, where its gradients are kept; and the files there: what they are, the gradients
# of training samples, and the vectors that are read whole.
GRADIENTS_FOLDER = "gradients"
GRADIENTS_FILE, ROWS_FILE, VECTORS_FILE = "gradients.json", "gradients.bin", "vectors.safetensors"


class ProjectionInfo(Record):
    """A row of the projection x sample matrix: which projection it belongs to, and its size."""

    layer: int
    name: str
    numel: int


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


class Collected(Record):
    """Of which samples gradients were taken, and how: in the record of the gradients and of scores.

    Attributes:
        subspace: of the matrices whose gradients these are.
        seed: of the subspace and of the samples' draw.
        max_length: tokens kept of an example.
        task: name and origin of the examples; None for examples handed over in memory.
        train_samples, validation_samples: how many were used.
        dropped_train, dropped_validation: indices of examples that did not fit `max_length`.
        setting: what the model ran on.
        fingerprint: what all of it depends on; None in memory.
    """

    subspace: str
    seed: int
    max_length: int
    task: dict[str, Any] | None
    train_samples: int
    validation_samples: int
    dropped_train: list[int]
    dropped_validation: list[int]
    setting: Setting
    fingerprint: Fingerprint | None = None


class GradientsRecord(Collected, JsonArtifact):
    """Whose gradients were collected, and how: all that they depend on.

    Attributes:
        model: that they are of.
        projections: of its decoder layers.
        matrices: whose gradients these are.
        dtype: of the numbers in the file.
        subspace_options: that the subspace was made with.
        validation_loss: mean completion loss of the validation samples, nats per token.
        seconds: that collecting took.
    """

    format: Literal["layerif.gradients/1"] = "layerif.gradients/1"
    model: ModelInfo
    projections: list[ProjectionInfo]
    matrices: list[MatrixRecord]
    dtype: str
    subspace_options: dict[str, Any]
    validation_loss: float = 0.0
    seconds: float = 0.0
