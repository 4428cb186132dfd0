"""What a kind of plan is: its levels, what they cost, their exact total, and its maps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import ArrayLike, NDArray

from layerif.plans.options import MapOptions


@dataclass(frozen=True)
class Map:
    """How scores become levels.

    Attributes:
        function: of the scores (n,); where it is exact, of the total too, and in weighted kinds of
            the sizes (n,). Its keywords are the options.
        exact: whether its levels are legal and have the total; else they are fitted to it.
        scored: whether scores have an effect.
        recorded: whether a plan records the options.
    """

    function: Callable[..., ArrayLike]
    exact: bool = True
    scored: bool = True
    recorded: bool = True

    @classmethod
    def given(cls, map: Map | Callable[..., ArrayLike]) -> Map:
        """A map from outside the registry: a function's levels are fitted to the total."""
        return map if isinstance(map, Map) else cls(map, exact=False)

    @cached_property
    def options(self) -> dict[str, Any]:
        """Its options, and what they are unless given."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@dataclass(frozen=True)
class PlanKind:
    """What a plan gives out: one level a layer, and a total that is kept exactly.

    Attributes:
        name: in plans, commands and recipes.
        label: of a layer's level, in tables and pictures.
        level: one level in words.
        span: the lowest and the highest level in words.
        legal: what levels may be, in words.
        form: how a level is printed.
        low, high: the bounds of a level.
        options: of its maps; `map` is the name of one.
        maps: how scores become levels, by name; `uniform` is among them.
        fit: levels of any size, the total and the sizes (n,) to the nearest legal levels of that
            total; this rounds where levels are whole.
        whole: whether levels are whole numbers.
        allowed: the levels, where they are not all between `low` and `high`.
        weighted: whether a level costs by the size of its layer, and the total is the mean by size;
            else the total is the sum.
        at_most: whether the total may be missed from below, by less than the smallest move: levels
            are whole, and cost by size.
        by_projection: whether the projections, or sublayers, of a layer may have levels of their
            own.
        every_layer: whether layers without a projection have a level and count too.
        ranks: levels (n,) and the rank of one expert to the ranks of a plain LoRA as large; None
            where no adapter is trained.
        caution: what to say of a plan, from the names and levels of its layers or projections.
    """

    name: str
    label: str
    level: str
    span: str
    legal: str
    form: str
    low: float
    high: float
    options: type[MapOptions]
    maps: Mapping[str, Map]
    fit: Callable[[ArrayLike, Any, ArrayLike], ArrayLike]
    whole: bool = False
    allowed: Sequence[float] | None = None
    weighted: bool = False
    at_most: bool = False
    by_projection: bool = False
    every_layer: bool = False
    ranks: Callable[[ArrayLike, int | ArrayLike], NDArray[Any]] | None = None
    caution: Callable[[Sequence[str], Sequence[float]], str | None] = lambda _names, _levels: None

    def check(self, levels: Sequence[float], names: Sequence[str] = ()) -> None:
        """Refuse a level that is not legal, as in a plan written by hand.

        Args:
            levels: of layers, or of what `names` says.

        Raises:
            ValueError: names the first.
        """
        for place, value in enumerate(levels):
            within = self.low <= value <= self.high and (not self.whole or value == int(value))
            within = within and (self.allowed is None or value in self.allowed)
            if not within:
                name, one = (names[place], "projection") if names else (f"layer {place}", "layer")
                raise ValueError(
                    f"{name} has {self.level.format(value)}; each {one} needs {self.legal}"
                )

    def has_total(self, realised: float, total: float, tolerance: float) -> bool:
        """Whether levels that come to `realised` have a total."""
        return realised - total <= tolerance and (self.at_most or total - realised <= tolerance)

    def total(self, levels: Sequence[float], sizes: Sequence[int] | None = None) -> float:
        """What levels come to: their mean by the layers' sizes (equal for None), or their sum.

        Layers of size 0, without a projection, count for nothing, unless every layer does.
        """
        sizes = sizes if sizes and not self.every_layer else [1] * len(levels)
        if not self.weighted:
            return float(sum(level for level, size in zip(levels, sizes, strict=True) if size))
        return math.fsum(s * n for s, n in zip(levels, sizes, strict=True)) / sum(sizes)
