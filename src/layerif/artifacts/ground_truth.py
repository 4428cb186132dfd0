"""What pruning each layer really costs, and how far a score foretells it."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from layerif.artifacts.base import JsonArtifact, ModelInfo, Record, Setting
from layerif.artifacts.fingerprint import Fingerprint
from layerif.choices import Orientation, TruthKind

FORMAT: Literal["layerif.ground_truth/1"] = "layerif.ground_truth/1"
FloatArray = NDArray[np.float64]


class GroundTruth(JsonArtifact):
    """The cost of pruning each layer, chunk by chunk of text.

    Attributes:
        kind: `isolated` or `operating_point`.
        sparsity: S.
        delta: by how much a layer was moved at the operating point; None where it was pruned alone.
        costs: (layers, chunks) nats a token; for the operating point per unit of sparsity. The mean
            over chunks is the layer's cost.
        base_loss: mean nats a token without the change.
        model, setting, text: what it was measured on.
        fingerprint: what all of it depends on.
    """

    format: Literal["layerif.ground_truth/1"] = FORMAT
    kind: TruthKind
    sparsity: float
    delta: float | None
    costs: list[list[float]]
    base_loss: float
    model: ModelInfo
    text: dict[str, Any]
    setting: Setting
    fingerprint: Fingerprint | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.costs) != self.model.layers or len({len(row) for row in self.costs}) != 1:
            raise ValueError(f"costs must have {self.model.layers} rows of one length")
        return self

    @property
    def matrix(self) -> FloatArray:
        """(layers, chunks) costs."""
        return np.array(self.costs)

    @property
    def values(self) -> FloatArray:
        """(layers,) mean cost of each layer."""
        return np.asarray(self.matrix.mean(1))


class Agreement(Record):
    """One score beside one ground truth.

    A budget prunes layers of high score more under `direct`, and less under `inverse`: it is right
    where a high score goes with a low cost, so its merit under `direct` is minus the correlation.

    Attributes:
        name: of the score.
        spearman: correlation of score and cost over layers, None where the score is constant.
        low, high: its 95 % interval, a bootstrap over the chunks of text that the cost is of.
    """

    name: str
    spearman: float | None
    low: float | None
    high: float | None

    @property
    def orientation(self) -> Orientation | None:
        """The orientation that the ground truth speaks for, None where the interval holds 0."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return None
        return "direct" if self.high < 0 else "inverse"
