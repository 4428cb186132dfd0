"""What pruning is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import field_validator

from layerif.compress.options import WalkOptions
from layerif.compress.pruning.registry import PRUNERS, reads_text
from layerif.core.options import Options, Rule
from layerif.errors import InputError


class MethodOptions(Options):
    """How weights are chosen."""

    title = "Pruning"

    method: Annotated[str, PRUNERS] = "wanda"
    """How the weights that become zero are chosen."""
    nm: str | None = None
    """Pattern N:M, such as 2:4: N of every M inputs are kept. With a plan, each projection's N
    follows from its own sparsity."""

    @field_validator("nm")
    @classmethod
    def _is_pattern(cls, nm: str | None) -> str | None:
        from layerif.compress.pruning.targets import Pattern

        try:
            return nm if nm is None else str(Pattern.parse(nm))
        except InputError as error:
            raise ValueError(str(error)) from None


class PruneOptions(MethodOptions, WalkOptions):
    """How a model is pruned."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "calibration calibration_samples context_length batch_tokens hidden_states all_experts "
            "data_dir seed",
            lambda v: reads_text(v["method"]),
            "for methods that read calibration text, such as wanda and sparsegpt",
        ),
    )
    renamed: ClassVar[Mapping[str, str]] = {
        "samples": "calibration_samples",
        "hidden": "hidden_states",
    }
