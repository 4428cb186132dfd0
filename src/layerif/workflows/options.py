"""What comparisons are asked for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from layerif.core.options import Shown
from layerif.evaluation.options import EvaluateOptions
from layerif.finetuning.options import FinetuneOptions, RowOptions

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


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
