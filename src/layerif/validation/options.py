"""What ground truths are measured at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from layerif.core.options import Options
from layerif.data.options import ChunkOptions

# Above it no float32 loss stays finite.
MOST_RATE = 1e30


class PointOptions(ChunkOptions):
    """How layers are pruned for a ground truth of pruning."""

    title = "Pruning"
    renamed: ClassVar[Mapping[str, str]] = {"samples": "calibration_samples"}

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Sparsity of the layers that are pruned."""
    delta: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """By how much the sparsity of a layer moves at the operating point."""
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens run at once, padding counted."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all draws; splits do not depend on it."""


class CapacityOptions(Options):
    """How adapters in one layer alone are trained."""

    title = "Capacity"
    renamed: ClassVar[Mapping[str, str]] = {"rate": "learning_rate", "steps": "train_steps"}

    train_steps: Annotated[int, Field(ge=1)] = 20
    """Steps of training in each layer."""
    learning_rate: Annotated[float, Field(gt=0, le=MOST_RATE)] = 1e-3
    """Learning rate of the first step."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Alpha of the adapters."""
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens run at once, padding counted."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all draws; splits do not depend on it."""
