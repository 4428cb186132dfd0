"""Pruners by name."""

from __future__ import annotations

from layerif.choices import PruningMethod, check_choice
from layerif.pruning.base import Pruner
from layerif.pruning.magnitude import Magnitude
from layerif.pruning.sparsegpt import SparseGPT
from layerif.pruning.wanda import Wanda

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
