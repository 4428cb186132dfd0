"""Names of projections in artifacts: `layers.7.mlp.up_proj`, the same for every architecture."""

from __future__ import annotations

import re
from collections.abc import Sequence

from layerif.core.record import Record


def layer_of(module: str) -> int:
    """Index of the decoder layer that a projection belongs to."""
    return int(module.split(".")[1])


class OfModule(Record):
    """What is said of one projection, by its canonical name."""

    module: str

    @property
    def layer(self) -> int:
        """Index of its decoder layer."""
        return layer_of(self.module)


def check_modules(modules: Sequence[OfModule], layers: int) -> None:
    """Refuse names of another form, a name given twice, and layers beyond those of the model.

    Raises:
        ValueError: there is one; what pydantic turns into a fault of the artifact.
    """
    names = [module.module for module in modules]
    if not all(re.fullmatch(r"layers\.\d+\..+", name) for name in names):
        raise ValueError("modules are named like layers.7.mlp.up_proj")
    if len(set(names)) != len(names):
        raise ValueError("a module is named twice")
    if any(module.layer >= layers for module in modules):
        raise ValueError(f"a module lies outside the {layers} layers")
