"""Sparsity, as a search gives it out: units that share one, their legal moves, the exact total."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from layerif.artifacts.plan import ModuleSparsity, Plan
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers, find_decoder_layers
from layerif.model.opening import describe
from layerif.plans.maps.sparsity import project_to_total
from layerif.search.base import State
from layerif.search.options import SearchOptions

# Moves of one offspring: the smaller of two draws from 1 to this, so that most make one or two.
MOST_MOVES = 3
# Draws of a pair of units, before a move that no pair allows is given up.
ATTEMPTS = 100
# How far from the total the quadratic question asks, and the sparsities between that are compared.
ASKED = 0.2
GRID = 181


@dataclass(frozen=True, eq=False)
class SparsityKind:
    """A sparsity for every projection by itself, or for those of a layer together.

    A state is (units,) the fraction of zeros in each; a level is a projection's number of zeros.

    Attributes:
        of: (projections,) the unit of each projection, from 0.
        numels: (projections,) int64, parameters of each.
        total: S, the fraction of zeros over all of them.
        low, high: no unit goes below or above.
        delta: half the width of the band that a slope is taken over.
        step: zeros of a random move, as a fraction of the smaller unit.
    """

    of: NDArray[np.int64]
    numels: NDArray[np.int64]
    total: float
    low: float
    high: float
    delta: float = 0.05
    step: float = 0.02

    @classmethod
    def among(cls, layers: DecoderLayers, total: float, options: SearchOptions) -> Self:
        """The units of a model, each kept within [S - below, S + above] and [0, 1].

        Raises:
            InputError: a sparsity outside [0, 1].
        """
        if not 0 <= total <= 1:
            raise InputError(f"sparsity must be within 0 to 1, not {total}")
        by_layer = options.granularity == "layer"
        units = [p.layer if by_layer else row for row, p in enumerate(layers.projections)]
        # Layers without a projection are no units.
        _, of = np.unique(units, return_inverse=True)
        numels = np.array([p.numel for p in layers.projections], dtype=np.int64)
        low, high = max(total - options.below, 0.0), min(total + options.above, 1.0)
        delta, step = options.delta, options.step
        return cls(of.astype(np.int64), numels, float(total), low, high, delta, step)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(units,) parameters of each."""
        return np.bincount(self.of, weights=self.numels).astype(np.int64)

    def start(self) -> State:
        """All units alike."""
        return np.full(len(self.sizes), self.total)

    def projected(self, state: State) -> State:
        """The nearest state of exactly the total, within the bounds."""
        return project_to_total(state, self.sizes, self.total, self.low, self.high)

    def levels(self, state: State) -> list[int]:
        """The zeros of each projection."""
        return [round(s * n) for s, n in self._spread(state)]

    def around(self, state: State) -> list[tuple[int, int]]:
        """For each projection its zeros at sparsities delta higher and lower, within 0 to 1."""
        return [
            (round(min(s + self.delta, 1.0) * n), round(max(s - self.delta, 0.0) * n))
            for s, n in self._spread(state)
        ]

    def worth(self, products: NDArray[np.float64], around: Sequence[tuple[int, int]]) -> State:
        """(units,) g: predicted change of the loss per unit of density given to each.

        A unit of density is as many weights as a unit has on average, so that those of any size
        compare by what a weight is worth. Negative: keeping more lowers the loss.
        """
        widths = np.bincount(self.of, weights=[more - fewer for more, fewer in around])
        found = np.bincount(self.of, weights=products) * float(self.sizes.mean())
        # Where delta N rounds to 0, no weight comes back, which predicts nothing.
        return np.divide(found, widths, out=np.zeros_like(found), where=widths > 0)

    def whole(self, state: State) -> State:
        """The state with whole numbers of zeros, together exactly round(S N).

        By the largest remainders, so no unit is off by one or more.
        """
        asked = state * self.sizes
        counts = np.floor(asked).astype(np.int64)
        missing = round(self.total * float(self.sizes.sum())) - int(counts.sum())
        order = np.argsort(counts - asked, kind="stable")
        counts[order[:missing]] += 1
        return counts / self.sizes

    def mutated(self, state: State, generator: np.random.Generator) -> State | None:
        """The state after a few moves of zeros from one unit to another; None where none is legal.

        A move is of as many zeros as `step` says. The state has whole numbers of zeros, whose sum
        is kept.
        """
        counts = np.rint(state * self.sizes).astype(np.int64)
        changed = counts.copy()
        lowest = np.ceil(self.low * self.sizes - 0.5)
        highest = np.floor(self.high * self.sizes + 0.5)
        moves = int(generator.integers(1, MOST_MOVES + 1, size=2).min())
        for _ in range(moves if len(counts) > 1 else 0):
            for _ in range(ATTEMPTS):
                source, to = generator.choice(len(counts), size=2, replace=False)
                zeros = max(1, round(self.step * float(min(self.sizes[source], self.sizes[to]))))
                if changed[source] - zeros >= lowest[source] and changed[to] + zeros <= highest[to]:
                    changed[source] -= zeros
                    changed[to] += zeros
                    break
        return None if np.array_equal(changed, counts) else changed / self.sizes

    def moves(self) -> dict[str, float]:
        """The band that a slope is taken over, and the size of a random move."""
        return {"delta": self.delta, "step": self.step}

    def untouched(self) -> list[int]:
        """No zeros anywhere."""
        return [0] * len(self.numels)

    def asked(self) -> list[tuple[int, ...]]:
        """For each projection its zeros at three sparsities about the total."""
        return [tuple(round(s * n) for s in self._asked) for n in self.numels.tolist()]

    @property
    def _asked(self) -> NDArray[np.float64]:
        middle = min(max(self.total, 1.25 * ASKED), 1 - 1.25 * ASKED)
        return middle + ASKED * np.array([-1.0, 0.0, 1.0])

    def solved(self, losses: NDArray[np.float64]) -> State:
        """The state of exactly the total with the least sum of losses.

        Between and beyond the sparsities asked for, the logarithm of a unit's loss is a parabola,
        or the loss itself where some are not positive, as of slopes.

        Args:
            losses: (projections, 3) at the levels of `asked`.
        """
        of_units = np.zeros((len(self.sizes), losses.shape[1]))
        np.add.at(of_units, self.of, losses)
        grid = np.linspace(self.low, self.high, GRID)
        if (of_units > 0).all():
            curves = np.exp(_parabolas(self._asked, np.log(of_units), grid))  # (units, grid)
        else:
            curves = _parabolas(self._asked, of_units, grid)
        costs = grid[None] * self.sizes[:, None] / float(self.sizes.sum())

        def at(price: float) -> NDArray[np.int64]:
            return np.argmin(curves - price * costs, axis=1)

        steepest = float(np.ptp(curves) / costs[costs > 0].min())
        lowest, highest = -steepest, steepest
        for _ in range(100):
            middle = (lowest + highest) / 2
            spent = costs[np.arange(len(costs)), at(middle)].sum()
            lowest, highest = (middle, highest) if spent < self.total else (lowest, middle)
        return self.projected(grid[at(highest)])

    def plan(self, model: Any, state: State, how: dict[str, Any]) -> Plan:
        """A plan by projections, with the record of how it came about."""
        projections = find_decoder_layers(model).projections
        modules = [
            ModuleSparsity(module=projection.key, sparsity=s, numel=n)
            for projection, (s, n) in zip(projections, self._spread(state), strict=True)
        ]
        how = {**how, "bounds": [self.low, self.high]}
        return Plan.of_modules(modules, total=self.total, model=describe(model), how=how)

    def _spread(self, state: State) -> list[tuple[float, int]]:
        """For each projection its sparsity, and its parameters."""
        return list(zip(state[self.of].tolist(), self.numels.tolist(), strict=True))


def _parabolas(
    places: NDArray[np.float64], values: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, wanted) the parabola through three values of each row, (n, 3) at `places`."""
    found = np.zeros((len(values), len(wanted)))
    for own in range(3):
        others = np.delete(places, own)
        basis = np.prod([(wanted - o) / (places[own] - o) for o in others], axis=0)
        found += values[:, own, None] * basis
    return found
