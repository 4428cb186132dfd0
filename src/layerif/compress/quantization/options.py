"""What quantisation is asked for."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from layerif.compress.options import WalkOptions
from layerif.compress.quantization.registry import QUANTIZERS
from layerif.core.choices import ColumnOrder, FolderFormat, Offset, Ranges, ScaleDtype
from layerif.core.options import ADDED, Options, Rule, Values

GROUP_SIZES = (32, 64, 128, 0)


class GridOptions(Options):
    """How weights become integers, and what they share."""

    title = "Quantisation"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "column_order",
            lambda v: v["method"] != "rtn",
            "for methods that refit weights, as gptq",
        ),
        Rule("offset", lambda v: not v["symmetric"], "without {symmetric}"),
    )

    method: Annotated[str, QUANTIZERS] = "gptq"
    """How weights are rounded: each to the nearest (rtn), or each making good the errors of those
    before it (gptq)."""
    group_size: int = 128
    """Inputs that share a scale: 32, 64, 128, or 0 for a whole row."""
    symmetric: bool = False
    """Leave out zero points: every range is centred on 0."""
    offset: Annotated[Offset, ADDED] = "zero_point"
    """What a group has beside its scale: a zero point of as many bits as a weight, which engines
    such as vLLM read, or its minimum in 16 bits, as llama.cpp's q4_1, which loses less."""
    ranges: Ranges = "weighted"
    """Range of each group: the shrink from its extremes that loses least on calibration text
    (weighted), or the extremes themselves (minmax)."""
    column_order: ColumnOrder = "diagonal"
    """Columns that gptq rounds first: those of the largest inputs (diagonal), or as they come
    (given)."""
    scales: ScaleDtype = "float16"
    """Precision of the scales."""

    @property
    def with_minimum(self) -> bool:
        """Whether a group has its minimum in place of a zero point."""
        return self.offset == "minimum" and not self.symmetric

    @field_validator("group_size")
    @classmethod
    def _is_a_size(cls, size: int) -> int:
        if size not in GROUP_SIZES:
            raise ValueError("group_size must be 32, 64, 128, or 0 for a whole row")
        return size


def reads_text(values: Values) -> bool:
    """Whether a quantiser takes statistics from calibration text, by the options of its grid."""
    grid = GridOptions(method=values["method"], ranges=values["ranges"])
    return QUANTIZERS.find(grid.method).statistics(grid) is not None


class QuantizeOptions(GridOptions, WalkOptions):
    """How a model is quantised."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *GridOptions.rules,
        Rule(
            "calibration calibration_samples context_length batch_tokens hidden_states all_experts "
            "data_dir seed",
            reads_text,
            "for methods that read calibration text: gptq, and rtn with {ranges} weighted",
        ),
    )

    embeddings: Annotated[int | None, Field(ge=2, le=8)] = None
    """Bits of the token embeddings, and of a head that is not tied to them, rounded to nearest
    from minimum to maximum; left out, they stay as they are."""


class QuantizedFolderOptions(QuantizeOptions):
    """How a model is quantised, and in what form it is written."""

    format: FolderFormat = "float"
    """Form of the folder: rounded weights, which any program opens and which is no smaller (float),
    or packed integers, which transformers and vLLM open (compressed-tensors)."""
