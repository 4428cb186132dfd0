"""Comparisons: by how much a model differs from another on the same items, and whether it does."""

from __future__ import annotations

from typing import Literal

from layerif.artifacts.base import JsonArtifact, Record
from layerif.artifacts.results import Scoring


class Comparison(Record):
    """One figure of a model beside a baseline's, item by item.

    Attributes:
        name: the task or corpus.
        metric: `accuracy` (higher is better), `perplexity` or `completion_loss` (lower is better).
        scoring: what both figures were read off, see `Measurement`.
        model, baseline: what the two are called.
        value, baseline_value: their figures.
        difference: value - baseline_value.
        low, high: its 95 % interval by paired bootstrap; None from a single item.
        count: items in pairs: rows, or chunks.
        test: what p comes from.
        p: two-sided.
        p_holm: p adjusted for all comparisons made together (Holm).
        inside_noise: p_holm is not below 0.05, so the figures do not tell the two apart.
    """

    name: str
    metric: Literal["accuracy", "perplexity", "completion_loss"]
    scoring: Scoring = "likelihood"
    model: str
    baseline: str
    value: float
    baseline_value: float
    difference: float
    low: float | None
    high: float | None
    count: int
    test: Literal["mcnemar", "paired_bootstrap", "crossed_bootstrap"]
    p: float
    p_holm: float
    inside_noise: bool


class Comparisons(JsonArtifact):
    """Comparisons made together, adjusted for one another."""

    format: Literal["layerif.comparisons/1"] = "layerif.comparisons/1"
    comparisons: list[Comparison]
