"""The manifest of a quantised model: what was planned, what was really done, and what it takes."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from layerif.artifacts.folder import FolderManifest
from layerif.artifacts.naming import OfModule, check_modules
from layerif.artifacts.plan import Plan
from layerif.core.choices import Offset
from layerif.core.fingerprint import Fingerprint
from layerif.core.record import ModelInfo, Record, Setting
from layerif.plans.maps.stored import WHOLE, stored_bytes


class QuantizedModule(OfModule):
    """One quantised projection.

    Attributes:
        bits: of a weight; 16 where it is left as it is.
        out_features, in_features: its shape.
        bytes: codes, scales and zero points; of 16 bits two bytes a weight.
        error: |(W - W') X|^2 / |W X|^2 over the calibration tokens; by rtn as if the features of X
            had no correlation, and None where no text is seen.
        damping: the share of its mean diagonal that was added to the Hessian; None without one.
        seconds: that choosing and rounding its weights took, statistics aside.
    """

    bits: int = Field(ge=2, le=WHOLE)
    out_features: int = Field(ge=1)
    in_features: int = Field(ge=1)
    bytes: int = Field(ge=1)
    error: float | None = None
    damping: float | None = None
    seconds: float | None = None

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features


class Matrix(Record):
    """Token embeddings or a head, by the name of the parameter.

    Attributes:
        out_features, in_features: its shape.
        bits: that it was rounded to; None where it is left in its own precision.
        bytes: that it takes.
        tied: whether one matrix is both.
    """

    name: str
    out_features: int = Field(ge=1)
    in_features: int = Field(ge=1)
    bits: int | None = None
    bytes: int = Field(ge=1)
    tied: bool = False

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features


class QuantizedManifest(FolderManifest):
    """Everything needed to tell how a quantised model came to be, and how large it is.

    Attributes:
        model: the model before.
        plan: the bits asked of each layer or projection.
        method: the quantiser.
        group_size: inputs that share a scale; 0 for a whole row.
        symmetric: whether there are no zero points.
        offset: what there is otherwise, `zero_point` or `minimum`.
        scales: precision of the scales.
        bits: their mean over all weights of the projections, scales aside.
        bytes: of all projections.
        modules: the same for each projection.
        others: token embeddings, and a head that is not tied to them.
        dense: name and size of other weights of two dimensions and more in the decoder layers,
            which are left as they are.
        calibration: text, tokens and seed that the statistics come from; empty without any.
        packed: how the integers are stored; None for a folder of rounded weights.
        precision: of the rounded weights that are stored, or beside integers of the rest. In
            float32 and float64 rounded weights are exact; 16 bits round each of them once more.
        fingerprint: what all of it depends on; None for a model quantised in memory.
    """

    holds = "quantised model"
    written_by = "layerif quantize"

    format: Literal["layerif.quantized/1"] = "layerif.quantized/1"
    model: ModelInfo
    plan: Plan
    method: str
    group_size: int = Field(ge=0)
    symmetric: bool
    offset: Offset = "zero_point"
    scales: str
    bits: float
    bytes: int
    modules: list[QuantizedModule] = Field(min_length=1)
    others: list[Matrix] = Field(default_factory=list)
    dense: dict[str, int] = Field(default_factory=dict)
    calibration: dict[str, Any]
    seconds: float
    setting: Setting
    packed: str | None = None
    precision: str
    fingerprint: Fingerprint | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_modules(self.modules, len(self.plan.allocation))
        for own in self.modules:
            size = stored_bytes(own.out_features, own.in_features, own.bits, self)
            if own.bytes != size:
                raise ValueError(
                    f"{own.module} of {own.bits} bits takes {size:,} bytes, not {own.bytes:,}"
                )
        if self.bytes != (whole := sum(own.bytes for own in self.modules)):
            raise ValueError(f"the projections take {whole:,} bytes, not {self.bytes:,}")
        return self

    @property
    def stored_bits(self) -> float:
        """Bits a weight of the projections, scales and zero points counted."""
        return 8 * self.bytes / sum(own.numel for own in self.modules)
