"""Bits, as a search gives them out: units that share a level, and a mean or a size that is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from layerif.artifacts.plan import Plan, module_level
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers, Projection, find_decoder_layers
from layerif.model.opening import describe
from layerif.plans.maps.bits import nearest_bits
from layerif.plans.maps.fused import fused_group
from layerif.plans.maps.knapsack import knapsack
from layerif.plans.maps.stored import WHOLE
from layerif.search.base import State
from layerif.search.options import BitsSearchOptions

# Levels that the quadratic question asks for: the nearest to the total; q of others follows from
# how it falls from one to the next.
ASKED = 4
# Moves of one offspring: the smaller of two draws from 1 to this, so that most make one or two.
MOST_MOVES = 3
# Draws of a pair of units, before a move that no pair allows is given up.
ATTEMPTS = 100


# What has bits of its own, by the name of its unit.
UNITS: dict[str, Callable[[Projection], str]] = {
    "layer": lambda p: str(p.layer),
    "projection": lambda p: p.key,
    "fused": lambda p: fused_group(p.key),
}


@dataclass(frozen=True, eq=False)
class BitsKind:
    """Bits for every projection by itself, for those that an engine fuses, or for those of a layer.

    A state is (units,) whole numbers of bits; a level is a projection's.

    Attributes:
        of: (projections,) the unit of each projection, from 0.
        numels: (projections,) int64, parameters of each.
        total: mean bits of a weight, scales aside, which is not exceeded.
        allowed: the levels, in ascending order.
    """

    of: NDArray[np.int64]
    numels: NDArray[np.int64]
    total: float
    allowed: NDArray[np.int64]

    @classmethod
    def among(cls, layers: DecoderLayers, total: float, options: BitsSearchOptions) -> Self:
        """The units of a model.

        Raises:
            InputError: the total is below all levels, or above 16.
        """
        levels = sorted(options.levels)
        if not levels[0] <= total <= WHOLE:
            raise InputError(
                f"bits must be from {levels[0]}, the lowest level, to {WHOLE}, not {total:g}"
            )
        name_of = UNITS[options.granularity]
        names = [name_of(p) for p in layers.projections]
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        of = np.array([places[name] for name in names], dtype=np.int64)
        numels = np.array([p.numel for p in layers.projections], dtype=np.int64)
        return cls(of, numels, float(total), np.array(levels, dtype=np.int64))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(units,) parameters of each."""
        return np.bincount(self.of, weights=self.numels).astype(np.int64)

    @property
    def budget(self) -> int:
        """Bits of all weights together."""
        return int(self.total * float(self.sizes.sum()) + 0.5)

    def start(self) -> State:
        """All units alike; where the total is between two levels, some have the higher one."""
        return self.projected(np.full(len(self.sizes), self.total))

    def projected(self, state: State) -> State:
        """The nearest levels within the total."""
        return nearest_bits(state, self.total, self.sizes, self.allowed).astype(np.float64)

    def levels(self, state: State) -> list[int]:
        """The bits of each projection."""
        return [round(bits) for bits in state[self.of].tolist()]

    def around(self, state: State) -> list[tuple[int, int]]:
        """For each projection the levels below and above its own, or its own at an end."""
        last = len(self.allowed) - 1
        places = np.searchsorted(self.allowed, state[self.of])
        return [
            (int(self.allowed[max(p - 1, 0)]), int(self.allowed[min(p + 1, last)])) for p in places
        ]

    def worth(self, products: NDArray[np.float64], around: Sequence[tuple[int, int]]) -> State:
        """(units,) g: predicted change of the loss per bit of each weight given to each.

        A bit counts as many weights as a unit has on average. Negative: more bits lower the loss.
        """
        widths = np.bincount(
            self.of,
            weights=self.numels * np.array([more - fewer for fewer, more in around]),
        )
        found = np.bincount(self.of, weights=products) * float(self.sizes.mean())
        # With a single level nothing can change.
        return np.divide(found, widths, out=np.zeros_like(found), where=widths > 0)

    def whole(self, state: State) -> State:
        """Levels within the total, as states are anyway."""
        return self.projected(state)

    def mutated(self, state: State, generator: np.random.Generator) -> State | None:
        """A few units a level higher, each paid for by others a level lower; None for no move."""
        places = np.searchsorted(self.allowed, state)
        changed = places.copy()
        moves = int(generator.integers(1, MOST_MOVES + 1, size=2).min())
        for _ in range(moves if len(places) > 1 else 0):
            for _ in range(ATTEMPTS):
                tried = changed.copy()
                raised, *lowered = generator.permutation(len(places)).tolist()
                if tried[raised] == len(self.allowed) - 1:
                    continue
                tried[raised] += 1
                for unit in lowered:
                    if self._spent(tried) <= self.budget:
                        break
                    if tried[unit]:
                        tried[unit] -= 1
                if self._spent(tried) <= self.budget:
                    changed = tried
                    break
        return None if np.array_equal(changed, places) else self.allowed[changed].astype(np.float64)

    def moves(self) -> dict[str, float]:
        """From each level to the next, always."""
        return {}

    def untouched(self) -> list[int]:
        """Every weight as it was."""
        return [WHOLE] * len(self.numels)

    def asked(self) -> list[tuple[int, ...]]:
        """For each projection the four levels nearest to the total, the higher of two that tie."""
        distances = np.abs(self.allowed - self.total)
        order = np.lexsort((-self.allowed, distances))[:ASKED]
        levels = tuple(sorted(int(bits) for bits in self.allowed[order]))
        return [levels] * len(self.numels)

    def solved(self, losses: NDArray[np.float64]) -> State:
        """The levels within the total with the least sum of losses: a knapsack.

        Beyond the levels asked for the logarithm of a loss goes on in a straight line; where some
        are not positive, as of slopes, the last one counts.

        Args:
            losses: (projections, levels) at those of `asked`; 0 at 16 bits.
        """
        (asked, *_) = self.asked()
        known = np.array([bits for bits in asked if bits != WHOLE])
        of_units = np.zeros((len(self.sizes), len(asked)))
        np.add.at(of_units, self.of, losses)
        of_units = of_units[:, : len(known)]
        curves = np.zeros((len(self.sizes), len(self.allowed)))
        for place, bits in enumerate(self.allowed.tolist()):
            if bits == WHOLE:
                continue
            if (of_units > 0).all():
                curves[:, place] = np.exp(_straight(known, np.log(of_units), bits))
            else:
                curves[:, place] = [np.interp(bits, known, own) for own in of_units]
        chosen = knapsack(curves, self.allowed[None] * self.sizes[:, None], self.budget)
        return self.allowed[chosen].astype(np.float64)

    def plan(self, model: Any, state: State, how: dict[str, Any]) -> Plan:
        """A plan by projections, with the record of how it came about."""
        projections = find_decoder_layers(model).projections
        modules = [
            module_level("bits", projection.key, bits, projection.numel)
            for projection, bits in zip(projections, self.levels(state), strict=True)
        ]
        how = {**how, "levels": self.allowed.tolist()}
        described = describe(model)
        return Plan.of_modules(modules, kind="bits", total=self.total, model=described, how=how)

    def _spent(self, places: NDArray[np.int64]) -> int:
        return int((self.allowed[places] * self.sizes).sum())


def _straight(
    known: NDArray[np.int64], values: NDArray[np.float64], wanted: float
) -> NDArray[np.float64]:
    """(n,) values (n, known) between the two nearest known places, or beyond the last two."""
    if len(known) == 1:
        return values[:, 0]
    right = int(np.clip(np.searchsorted(known, wanted), 1, len(known) - 1))
    share = (wanted - known[right - 1]) / (known[right] - known[right - 1])
    return values[:, right - 1] * (1 - share) + values[:, right] * share
