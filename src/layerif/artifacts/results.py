"""Results: what was measured on a model, and how."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from layerif.artifacts.base import JsonArtifact, ModelInfo, Record, Setting


class Measurement(Record):
    """One figure.

    Attributes:
        name: the task or corpus.
        metric: `perplexity` (lower is better) or `accuracy` (higher is better).
        value: the figure.
        low, high: 95 % interval, where one is known.
        count: what it was measured on: predicted tokens, or rows.
        details: companions of the figure, e.g. accuracy with length-normalised likelihoods.
    """

    name: str
    metric: Literal["perplexity", "accuracy"]
    value: float
    low: float | None = None
    high: float | None = None
    count: int
    details: dict[str, Any] = Field(default_factory=dict)


class Results(JsonArtifact):
    """Everything one evaluation measured on one model.

    Attributes:
        model: what was evaluated.
        sparsity: fraction of zeros in the decoder layers' projections, counted on the weights.
        measurements: the figures, in the order asked for.
        how: seed, lengths and data origins.
    """

    format: Literal["layerif.results/1"] = "layerif.results/1"
    model: ModelInfo
    sparsity: float
    measurements: list[Measurement]
    how: dict[str, Any] = Field(default_factory=dict)
    setting: Setting
