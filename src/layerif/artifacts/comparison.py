"""Comparisons: by how much a model differs from another on the same items, and whether it does."""

from __future__ import annotations

from typing import Literal

from layerif.artifacts.results import Scoring
from layerif.core.record import JsonArtifact, Record

SIGNIFICANCE = 0.05


class Comparison(Record):
    """One figure of a model beside a baseline's, item by item.

    Attributes:
        name: the task or corpus.
        metric: `accuracy` (higher is better), `perplexity` or `completion_loss` (lower is better).
        scoring: what both figures were read off, see `Measurement`.
        model, baseline: what the two are called.
        value, baseline_value: their figures.
        difference: value - baseline_value.
        low, high: its 95 % interval; None from a single item or seed.
        count: items in pairs: rows, or chunks.
        seeds: of training, where each figure is a mean over several runs; None for one model.
        test: what p and the interval of a loss come from; `crossed_bootstrap` in older files.
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
    seeds: int | None = None
    test: Literal["mcnemar", "paired_bootstrap", "crossed_t", "crossed_bootstrap"]
    p: float
    p_holm: float
    inside_noise: bool


class Comparisons(JsonArtifact):
    """Comparisons made together, adjusted for one another."""

    format: Literal["layerif.comparisons/1"] = "layerif.comparisons/1"
    comparisons: list[Comparison]
