"""Pruners by name."""

from __future__ import annotations

from layerif.compress.pruning.base import Pruner
from layerif.compress.pruning.magnitude import Magnitude
from layerif.compress.pruning.sparsegpt import SparseGPT
from layerif.compress.pruning.wanda import Wanda
from layerif.core.choices import PruningMethod, check_choice

PRUNERS: dict[str, Pruner] = {
    "magnitude": Magnitude(),
    "wanda": Wanda(),
    "sparsegpt": SparseGPT(),
}


def find_pruner(name: str) -> Pruner:
    """The pruner of a name.

    Raises:
        InputError: there is none; lists those there are.
    """
    check_choice(name, PruningMethod, "pruning method")
    return PRUNERS[name]
