"""What quantisation is asked for."""

from __future__ import annotations

from typing import Annotated

from pydantic import field_validator

from layerif.compress.quantization.registry import QUANTIZERS
from layerif.core.choices import ColumnOrder, Ranges, ScaleDtype
from layerif.core.options import Options

GROUP_SIZES = (32, 64, 128, 0)


class GridOptions(Options):
    """How weights become integers, and what they share."""

    title = "Quantisation"

    method: Annotated[str, QUANTIZERS] = "gptq"
    """How weights are rounded: each to the nearest (rtn), or each making good the errors of those
    before it (gptq)."""
    group_size: int = 128
    """Inputs that share a scale: 32, 64, 128, or 0 for a whole row."""
    symmetric: bool = False
    """Leave out zero points: every range is centred on 0."""
    ranges: Ranges = "weighted"
    """Range of each group: the shrink from its extremes that loses least on calibration text
    (weighted), or the extremes themselves (minmax)."""
    order: ColumnOrder = "diagonal"
    """Columns in which gptq rounds first: those of the largest inputs (diagonal), or as they come
    (given)."""
    scales: ScaleDtype = "float16"
    """Precision of the scales."""

    @field_validator("group_size")
    @classmethod
    def _is_a_size(cls, size: int) -> int:
        if size not in GROUP_SIZES:
            raise ValueError("group_size must be 32, 64, 128, or 0 for a whole row")
        return size
