"""Results: what was measured on a model, and how; and comparisons of models, item by item."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from layerif.core.fingerprint import Fingerprint
from layerif.core.record import JsonArtifact, ModelInfo, Record, Setting

Scoring = Literal["likelihood", "generation", "harness"]
# A comparison of p from here on tells nothing apart.
SIGNIFICANCE = 0.05


class Outcomes(Record):
    """What a figure is made of, item by item, so that two models can be compared in pairs.

    An item is a row of a task, or a chunk of a corpus.

    Attributes:
        items: hash of what was measured, in order: the rows as texts, a chunk as its tokens.
        nats: negative log-likelihood of each item's right completion, or of the chunk, summed;
            empty where none was computed, as for generated answers.
        tokens: what each sum is over.
        correct: 1 where the row was answered right, else 0; empty where nothing is answered.
    """

    items: str
    nats: list[float] = Field(default_factory=list)
    tokens: list[Annotated[int, Field(gt=0)]] = Field(default_factory=list)
    correct: list[Literal[0, 1]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _same_items(self) -> Self:
        lengths = {len(self.nats), len(self.tokens), len(self.correct)}
        if len(self.nats) != len(self.tokens) or lengths == {0} or len(lengths - {0}) > 1:
            raise ValueError(
                f"{len(self.nats)} nats, {len(self.tokens)} tokens and {len(self.correct)} correct "
                "are not of the same items"
            )
        return self

    @property
    def count(self) -> int:
        """How many items there are."""
        return len(self.nats) or len(self.correct)


class Measurement(Record):
    """One figure.

    Attributes:
        name: the task or corpus.
        metric: `perplexity` (lower is better) or `accuracy` (higher is better).
        scoring: what the figure was read off: likelihoods, generated text, or lm-evaluation-harness
            with its own prompts. Figures of different scoring do not compare.
        value: the figure.
        low, high: 95 % interval, where one is known.
        count: what it was measured on: predicted tokens, or rows.
        details: companions of the figure, e.g. accuracy with length-normalised likelihoods.
        outcomes: the same item by item; None in a file written without them.
    """

    name: str
    metric: Literal["perplexity", "accuracy"]
    scoring: Scoring = "likelihood"
    value: float
    low: float | None = None
    high: float | None = None
    count: int
    details: dict[str, Any] = Field(default_factory=dict)
    outcomes: Outcomes | None = None

    @model_validator(mode="after")
    def _answered(self) -> Self:
        if self.metric == "accuracy" and self.outcomes and not self.outcomes.correct:
            raise ValueError("the outcomes of an accuracy must say which rows are correct")
        return self


class Results(JsonArtifact):
    """Everything one evaluation measured on one model.

    Attributes:
        model: what was evaluated.
        sparsity: fraction of zeros in the decoder layers' projections, counted on the weights.
        measurements: the figures, in the order asked for.
        how: seed, lengths and data origins.
        fingerprint: what all of it depends on; None for a model measured in memory.
    """

    format: Literal["layerif.results/1"] = "layerif.results/1"
    model: ModelInfo
    sparsity: float
    measurements: list[Measurement]
    how: dict[str, Any] = Field(default_factory=dict)
    setting: Setting
    fingerprint: Fingerprint | None = None

    def joined(self, other: Results) -> Results:
        """These figures and then `other`'s, of the same model."""
        return self.model_copy(
            update={
                "measurements": [*self.measurements, *other.measurements],
                "how": {**self.how, **other.how},
            }
        )


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
