"""What comparisons are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from layerif.compress.pruning.options import MethodOptions
from layerif.core.options import Shown
from layerif.data.options import ChunkOptions
from layerif.evaluation.options import EvaluateOptions
from layerif.finetuning.options import FinetuneOptions, RowOptions

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class SparsityStudy(MethodOptions, ChunkOptions):
    """What all sparsity plans share: the total, how it is pruned, and how plans are tuned."""

    renamed: ClassVar[Mapping[str, str]] = {"samples": "calibration_samples"}

    sparsity: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of zeros over all projections."""
    tries: Annotated[int, Field(ge=1)] = 4
    """Values that each plan tries on held-out text; rounds of a plan that is searched for."""
    held_out_tokens: Annotated[int, Field(ge=1)] = 8192
    """Tokens of calibration text, apart from the chunks, that tries are judged by."""
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens run at once, padding counted."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all draws; splits do not depend on it."""


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
