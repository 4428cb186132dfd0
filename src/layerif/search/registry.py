"""What can be searched for, and how, by name: what this package has, and what a user registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.model.layers import DecoderLayers
    from layerif.search.base import Kind, Strategy
    from layerif.search.options import SearchOptions

    # The units of a model, which share a total.
    Among = Callable[[DecoderLayers, float, SearchOptions], Kind]

KINDS: Registry[Among] = Registry(
    "searched kind", {"sparsity": "layerif.search.sparsity:SparsityKind.among"}
)
STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    {
        "marginal": "layerif.search.rounds:MARGINAL",
        "evolution": "layerif.search.evolution:EVOLUTION",
    },
)


def register_kind(name: str, among: Among) -> None:
    """Let `search` give out another kind of budget, which a compressor of that name spends.

    Raises:
        InputError: the name is taken.
    """
    KINDS.register(name, among)


def register_strategy(name: str, strategy: Strategy) -> None:
    """Give a strategy a name: `search(..., strategy=name)` then uses it.

    Raises:
        InputError: the name is taken.
    """
    STRATEGIES.register(name, strategy)
