"""What a search is made of: a kind of budget, a compressor that spends it, and a strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from layerif.artifacts.plan import Plan
from layerif.compress.compressor import Change, Compressor
from layerif.core.checkpoint import Steps
from layerif.data.batching import Encoded
from layerif.search.options import StrategyOptions
from layerif.search.slopes import BACKWARD_TOKENS, mean_loss, slopes
from layerif.search.texts import Texts

# (units,) how much of the budget each has.
State = NDArray[np.float64]


class Kind(Protocol):
    """Units that share a budget: what a level costs, which moves are legal, the total."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(units,) what each counts for in the total."""

    def start(self) -> State:
        """All units alike."""

    def projected(self, state: State) -> State:
        """The nearest legal state of exactly the total."""

    def levels(self, state: State) -> list[int]:
        """What the compressor sets each projection to."""

    def around(self, state: State) -> list[tuple[int, int]]:
        """For each projection two levels about its own, that which keeps less first."""

    def worth(self, products: NDArray[np.float64], around: Sequence[tuple[int, int]]) -> State:
        """(units,) g: predicted change of the loss per unit of what the model keeps.

        Args:
            products: (projections,) <dL/dW, D>, in nats, of the changes from the first level of
                each of `around` to the second.
        """

    def whole(self, state: State) -> State:
        """The nearest state whose levels have exactly the total."""

    def mutated(self, state: State, generator: np.random.Generator) -> State | None:
        """A few random moves away, of the same total; None where none is legal."""

    def moves(self) -> dict[str, float]:
        """What a move is made of, for the record."""

    def untouched(self) -> list[int]:
        """The level of each projection at which it is as it was."""

    def asked(self) -> list[tuple[int, ...]]:
        """For each projection the levels that the quadratic question asks for, as many of each."""

    def solved(self, losses: NDArray[np.float64]) -> State:
        """The state of the total with the least sum of losses, (projections, levels of `asked`)."""

    def plan(self, model: Any, state: State, how: dict[str, Any]) -> Plan:
        """The state as a plan, with the record of how it came about."""


@dataclass(frozen=True, eq=False)
class Search:
    """A model held compressed, and what a strategy may ask of it.

    Attributes:
        model: the causal LM.
        kind: of budget.
        compressor: spends it.
        texts: for gradients and for judging.
        options: of the search.
        steps: keep what is finished.
    """

    model: Any
    kind: Kind
    compressor: Compressor
    texts: Texts
    options: StrategyOptions
    steps: Steps

    def loss(self, items: Sequence[Encoded]) -> float:
        """Mean loss of texts as the model is now, in nats a token."""
        return mean_loss(self.model, items, batch_tokens=self.options.batch_tokens)

    def slopes(self, changes: Sequence[Change], items: Sequence[Encoded]) -> NDArray[np.float64]:
        """(projections,) <dL/dW, D> of changes of the model as it is now, in nats."""
        tokens = min(self.options.batch_tokens, BACKWARD_TOKENS)
        return slopes(self.model, changes, items, batch_tokens=tokens)


@dataclass(frozen=True, eq=False)
class Found:
    """What a strategy found.

    Attributes:
        state: of the best plan.
        how: the strategy's part of the record.
    """

    state: State
    how: dict[str, Any]


@dataclass(frozen=True)
class Strategy:
    """A way to search.

    Attributes:
        run: makes the plan's state.
        metric: what it measures, in words, for the record.
        passes: through the model, as memory is estimated.
        held: how many times the bytes of the projections' weights it needs at most beside the
            model: a copy of them, and what changes of them.
    """

    run: Callable[[Search], Found]
    metric: str
    passes: Literal["forward", "inputs"] = "forward"
    held: int = 2
