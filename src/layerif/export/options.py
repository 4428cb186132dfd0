"""What an export is asked for beside the plan."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from layerif.core.options import Options

Fused = Literal["raise", "refuse", "keep"]
GgufType = Literal["q4_0", "q5_0", "q8_0", "q4_K", "q5_K", "q6_K", "f16", "f32"]


class ExportOptions(Options):
    """How a plan is written."""

    title = "Export"


class GroupOptions(ExportOptions):
    """For engines that give the inputs of a row their scales group by group."""

    group_size: Literal[16, 32, 64, 128] = 128
    """Inputs that share a scale, for plans of bits; rows that it does not divide get the largest
    that does."""


class IntegerOptions(GroupOptions):
    """For plans of bits whose integers may be symmetric or not."""

    symmetric: bool = True
    """Leave out zero points."""
    fused: Fused = "raise"
    """Where q/k/v or gate/up, which vLLM and SGLang run as one, differ: raise all of them to the
    highest, refuse the plan, or keep it for engines that run them apart."""


class MlxOptions(ExportOptions):
    """For MLX."""

    group_size: Literal[32, 64, 128] = 64
    """Inputs that share a scale and a minimum."""
    embeddings: Annotated[int | None, Field(ge=2, le=8)] = None
    """Bits of the token embeddings and of the head; left out, they stay as they are."""


class GgufOptions(ExportOptions):
    """For llama.cpp."""

    embeddings: GgufType = "q8_0"
    """Type of the token embeddings and of an untied head, for plans of bits."""
    source: str = "model-f16.gguf"
    """The file that convert_hf_to_gguf.py has made of the model, as the command names it."""
    target: str = "model-plan.gguf"
    """The file that the command is to write."""


class LoraOptions(ExportOptions):
    """For PEFT."""

    alpha_per_rank: Annotated[float, Field(gt=0)] = 2.0
    """Scaling alpha / r, the same in every layer."""
