"""What measuring by a metric is asked for, whichever metric it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from layerif.data.options import ChunkOptions


class MeasureOptions(ChunkOptions):
    """How much text or how many tokens of samples a metric reads, and its seed."""

    renamed: ClassVar[Mapping[str, str]] = {"samples": "calibration_samples"}

    max_length: Annotated[int, Field(ge=2)] = 512
    """Tokens kept of an example; a longer prompt is cut from the left."""
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens run at once, padding counted."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all draws; splits do not depend on it."""
