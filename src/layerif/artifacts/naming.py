"""Names of projections in artifacts: `layers.7.mlp.up_proj`, the same for every architecture."""

from __future__ import annotations

import re
from collections.abc import Sequence


def layer_of(module: str) -> int:
    """Index of the decoder layer that a projection belongs to."""
    return int(module.split(".")[1])


def check_module_names(names: Sequence[str]) -> None:
    """Refuse names of another form, and a name given twice.

    Raises:
        ValueError: there is one; what pydantic turns into a fault of the artifact.
    """
    if not all(re.fullmatch(r"layers\.\d+\..+", name) for name in names):
        raise ValueError("modules are named like layers.7.mlp.up_proj")
    if len(set(names)) != len(names):
        raise ValueError("a module is named twice")
