"""The calibration text of a change that goes layer by layer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from layerif.core.choices import HiddenStatesPlace
from layerif.core.options import ADDED, RESULTS_UNCHANGED
from layerif.data.options import ChunkOptions


class WalkOptions(ChunkOptions):
    """How statistics are taken, layer by layer."""

    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens run at once, padding counted."""
    hidden_states: Annotated[HiddenStatesPlace, RESULTS_UNCHANGED] = "auto"
    """Where hidden states between layers are kept; auto: on disk if they fill half the memory."""
    all_experts: Annotated[bool, ADDED] = False
    """Take statistics of every token at every expert of a mixture, whatever is routed to it."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all draws; splits do not depend on it."""
