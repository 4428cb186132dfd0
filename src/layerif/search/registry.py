"""What can be searched for, and how, by name: what this package has, and what a user registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.artifacts.plan import Plan
    from layerif.model.layers import DecoderLayers
    from layerif.search.base import Kind, Strategy
    from layerif.search.depth_options import DepthSearchOptions
    from layerif.search.options import StrategyOptions

    # The units of a model, which share a total.
    Among = Callable[[DecoderLayers, float, Any], Kind]
    # Of a model and a total, with the other arguments of `search_plan` by keyword.
    WholeSearch = Callable[..., Plan]

KINDS: Registry[Among] = Registry(
    "searched kind",
    {
        "sparsity": "layerif.search.sparsity:SparsityKind.among",
        "bits": "layerif.search.bits:BitsKind.among",
    },
)
STRATEGIES: Registry[Strategy] = Registry.of(
    __package__, "strategy", "rounds:marginal quadratic evolution"
)
# Kinds whose search is one of its own, from the first step to the plan.
SEARCHES: Registry[WholeSearch] = Registry("search", {"depth": "layerif.search.depth:search_depth"})
# What a search for a kind is asked for; of a kind that has none of its own, as for sparsity.
OPTIONS: Registry[type[StrategyOptions | DepthSearchOptions]] = Registry(
    "search options",
    {
        "sparsity": "layerif.search.options:SearchOptions",
        "bits": "layerif.search.options:BitsSearchOptions",
        "depth": "layerif.search.depth_options:DepthSearchOptions",
    },
)


def searched() -> list[str]:
    """Every kind of plan that can be searched for."""
    return [*KINDS.names(), *SEARCHES.names()]


def options_of(kind: str) -> type[StrategyOptions | DepthSearchOptions]:
    """The options of a search for a kind."""
    return OPTIONS.find(kind if kind in OPTIONS.names() else "sparsity")


# A kind of budget that is registered is spent by the compressor of that name.
register_kind = KINDS.register
register_strategy = STRATEGIES.register
