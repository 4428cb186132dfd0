"""What comparisons are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from layerif.compress.pruning.options import MethodOptions
from layerif.compress.quantization.options import GridOptions
from layerif.core.options import Rule, Shown, Values, words
from layerif.data.options import ChunkOptions
from layerif.evaluation.options import EvaluateOptions
from layerif.finetuning.options import FinetuneOptions, RowOptions
from layerif.search.depth_options import MEASURING, NOT_ASKING, DepthReading
from layerif.search.options import DEFAULT_LEVELS, Levels

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class ModelStudy(ChunkOptions):
    """What all plans share that change a model: how they are tuned.

    Attributes:
        kind: of plan.
    """

    renamed: ClassVar[Mapping[str, str]] = {"samples": "calibration_samples"}
    kind: ClassVar[str]

    tries: Annotated[int, Field(ge=1)] = 4
    """Values that each plan tries on held-out text; rounds of a plan that is searched for."""
    held_out_tokens: Annotated[int, Field(ge=1)] = 8192
    """Tokens of calibration text, apart from the chunks, that tries are judged by."""
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens run at once, padding counted."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all draws; splits do not depend on it."""
    evolution_seconds: Annotated[float, Field(gt=0)] = 600
    """Seconds of the search for the plan evolution."""

    @property
    def name(self) -> str:
        """What a folder of it is claimed for."""
        return f"compare {self.kind}"

    @property
    def total(self) -> float:
        """Of each plan."""
        return float(getattr(self, self.kind))


class SparsityStudy(MethodOptions, ModelStudy):
    """What all sparsity plans share: the total, how it is pruned, and how plans are tuned."""

    kind = "sparsity"

    sparsity: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of zeros over all projections."""


class BitsStudy(GridOptions, ModelStudy):
    """What all plans of bits share: their mean, how weights are rounded, and the tuning."""

    kind = "bits"

    bits: Annotated[float, Field(ge=2, le=16)]
    """Mean bits of a weight over all projections, scales aside."""
    levels: Levels = DEFAULT_LEVELS
    """Bits that searched plans choose among; 16 leaves a projection as it is."""
    tokens: Annotated[int, Field(ge=1)] = 4096
    """Tokens of text that searched plans ask the loss of."""


class DepthStudy(DepthReading):
    """What all depth plans share: how much is dropped, and the text they read."""

    drop: Annotated[int, Field(ge=1)]
    """Layers, or sublayers, that every plan drops."""


def _any_of(*names: str) -> Callable[[Values], bool]:
    """Whether one of those plans is compared."""
    return lambda values: not {*names}.isdisjoint(words(values["plans"]))


# Which options of `ModelStudy` have an effect, by the plans that are compared.
MODELS_COMPARED = (
    Rule(
        "tries",
        lambda v: bool({*words(v["plans"])} - {"uniform"}),
        "where another plan than uniform is among {plans}",
    ),
    Rule("evolution_seconds", _any_of("evolution"), "where evolution is among {plans}"),
)
# And of `DepthStudy`.
DEPTH_COMPARED = (
    Rule("candidates", _any_of("shortlist"), "where shortlist is among {plans}"),
    Rule("trial_tokens", _any_of(*MEASURING), "where shortlist or greedy is among {plans}"),
    Rule(
        "tokens",
        lambda v: not {*words(v["plans"])} <= {*NOT_ASKING, "uniform", "last"},
        "where a plan that asks the model is among {plans}",
    ),
)


class ExpertsStudy(FinetuneOptions, RowOptions):
    """What all plans share. The seed is of the draw of rows; training has seeds of its own."""

    seeds: Seeds = (0, 1, 2)
    """Seeds of the training runs of each plan."""
    samples: Annotated[int | None, Field(ge=1), Shown("all")] = None
    """Test rows of the task."""

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds are to be each once, and are {list(seeds)}")
        return seeds

    @property
    def measuring(self) -> EvaluateOptions:
        """What `evaluate` takes."""
        names = ("samples", "seed", "max_length", "batch_tokens")
        return EvaluateOptions(**{name: getattr(self, name) for name in names})
