"""What a change of each layer alone really does to the loss, and how far a score predicts it."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from layerif.core.choices import Orientation, TruthKind
from layerif.core.fingerprint import Fingerprint
from layerif.core.record import JsonArtifact, ModelInfo, Record, Setting

FloatArray = NDArray[np.float64]


class GroundTruth(JsonArtifact):
    """What pruning each layer costs, or what adapters in it gain, text by text.

    Attributes:
        kind: `isolated`, `operating_point` or `capacity`.
        sparsity: S; None under `capacity`.
        delta: by how much a layer was moved at the operating point; else None.
        training: rank, alpha, steps and so on of the adapters under `capacity`; else None.
        costs: (layers, texts) nats a token. Of pruning: the rise of the loss, at the operating
            point per unit of sparsity. Under `capacity` a gain, the fall of the loss. The mean over
            texts (chunks, or the rows of a task) is the layer's.
        base_loss: mean nats a token without the change.
        model, setting, text: what it was measured on.
        fingerprint: what all of it depends on.
    """

    format: Literal["layerif.ground_truth/1"] = "layerif.ground_truth/1"
    kind: TruthKind
    sparsity: float | None
    delta: float | None
    training: dict[str, Any] | None = None
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
        """(layers, texts) costs, or gains."""
        return np.array(self.costs)

    @property
    def values(self) -> FloatArray:
        """(layers,) mean of each layer."""
        return np.asarray(self.matrix.mean(1))


class Agreement(Record):
    """One score beside one ground truth.

    Under `direct` a budget gives layers of high score more of what it spends, under `inverse` less.
    Of sparsity they should have more where a high score goes with a low cost of pruning, of experts
    and ranks where it goes with a high gain: there `direct` is right.

    Attributes:
        name: of the score.
        truth: what it is beside.
        spearman: correlation over layers, None where the score is constant.
        low, high: its 95 % interval, a bootstrap over the texts that the ground truth is of.
        p: how often the score in random order of the layers correlates as strongly, adjusted for
            all scores and ground truths beside it (Holm).
        by_chance: p is not below 0.05, so that the correlation says nothing of the score.
    """

    name: str
    truth: TruthKind
    spearman: float | None
    low: float | None
    high: float | None
    p: float | None = None
    by_chance: bool = False

    @property
    def orientation(self) -> Orientation | None:
        """The orientation that the ground truth supports.

        None where the interval holds 0, or chance does as well.
        """
        if self.low is None or self.high is None or self.low <= 0 <= self.high or self.by_chance:
            return None
        return "direct" if (self.low > 0) == (self.truth == "capacity") else "inverse"
