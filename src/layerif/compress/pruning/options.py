"""What pruning is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from layerif.compress.pruning.registry import PRUNERS, reads_text
from layerif.core.choices import HiddenStatesPlace
from layerif.core.options import ADDED, RESULTS_UNCHANGED, Options, Rule
from layerif.data.options import ChunkOptions
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


class PruneOptions(MethodOptions, ChunkOptions):
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

    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens run at once, padding counted."""
    hidden_states: Annotated[HiddenStatesPlace, RESULTS_UNCHANGED] = "auto"
    """Where hidden states between layers are kept; auto: on disk if they fill half the memory."""
    all_experts: Annotated[bool, ADDED] = False
    """Take statistics of every token at every expert of a mixture, whatever is routed to it."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all draws; splits do not depend on it."""
