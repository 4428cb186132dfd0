"""Influence from gradients that are computed several times and never kept.

What is remembered between the passes are vectors of n and of d numbers. The same code serves
gradients that are kept: `read` reads a block's rows as often as needed.

    passes = DataInfPasses("layers.0.mlp.up_proj", [Part(...)], samples, [Damping()])
    while not passes.done:
        for rows, gradients in ...:  # every sample once, in any order and any batches
            passes.observe(rows, gradients)
        passes.end_pass()
    (solution,) = passes.solutions()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from layerif.errors import InputError
from layerif.influence.estimators.base import Solution
from layerif.influence.estimators.block import CHUNK, Block, Factors, Part
from layerif.influence.estimators.factored import FactoredRows, Gradients, columns_of
from layerif.influence.options import Damping

Rows = slice | torch.Tensor


class Pass(NamedTuple):
    """One pass of an estimator over the training gradients.

    Attributes:
        take: what it does with rows (b,) and their gradients (b, d) float64.
        gathers: names of the attributes that `take` adds to. They are 0 before the pass, so what
            several processes gathered of some rows each adds up to what one gathers of all.
        finish: what is worked out when every row has been taken.
    """

    take: Callable[[Rows, Gradients], None]
    gathers: Sequence[str]
    finish: Callable[[], None] = lambda: None


class Passes(ABC):
    """One estimator on one block, fed with batches of per-sample gradients.

    What it remembers between batches are tensors, and lists of factors, in attributes that begin
    with `_`.

    Args:
        name: of the block.
        parts: its trainable matrices with their validation gradients, which have to be known first.
        samples: n.
        dampings: one solution is made for each, all in the same passes.

    Attributes:
        finished: passes that have ended.
        seen: (n,) how often each sample was observed in this pass.
    """

    def __init__(
        self, name: str, parts: Sequence[Part], samples: int, dampings: Sequence[Damping]
    ) -> None:
        self.name = name
        self.parts = parts
        self.samples = samples
        self.dampings = dampings
        self.columns = columns_of(parts)
        self.validation = torch.cat([part.validation.double() for part in parts])
        self.seen = torch.zeros(samples, dtype=torch.int64)
        self.finished = 0

    @property
    def size(self) -> int:
        """d."""
        return len(self.validation)

    @property
    def needed(self) -> int:
        """Passes over the training gradients, from the first to the last."""
        return len(self._plan())

    @property
    def done(self) -> bool:
        """Every pass is finished, and the solutions are there."""
        return self.finished == self.needed

    def observe(self, rows: Rows, gradients: Gradients) -> None:
        """Take in the gradients of some samples.

        Args:
            rows: which samples, as indices (b,) or a slice.
            gradients: (b, d), any floating dtype; read in float64. Or the rows in factors.

        Raises:
            InputError: shapes that do not belong to the block, or every pass is done.
        """
        index = torch.arange(self.samples)[rows.cpu() if isinstance(rows, torch.Tensor) else rows]
        if self.done or gradients.shape != (len(index), self.size):
            raise InputError(
                f"block {self.name} has had all of its {self.needed} passes"
                if self.done
                else f"gradients of shape {tuple(gradients.shape)} for {len(index)} rows do not "
                f"belong to block {self.name}; expected ({len(index)}, {self.size})"
            )
        self.seen.index_add_(0, index, torch.ones_like(index))
        device = self.validation.device
        take = self._plan()[self.finished].take
        if isinstance(gradients, FactoredRows):
            take(index.to(device), gradients)
            return
        step = max(1, CHUNK // self.size)
        for own, piece in zip(index.split(step), gradients.split(step), strict=True):
            take(own.to(device), piece.to(device).double())

    def gathered(self) -> dict[str, torch.Tensor]:
        """What this pass has added up so far, by name: the tensors themselves."""
        return self._named(["seen", *self._plan()[self.finished].gathers])

    def state(self) -> dict[str, torch.Tensor]:
        """All that is remembered between batches, by name: the tensors themselves."""
        own = [name for name in vars(self) if name[0] == "_"]
        return {"finished": torch.tensor(self.finished), **self._named(["seen", *own])}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from the `state` of passes that were opened with the same.

        Its tensors are copied: those read from a file may begin anywhere in memory, and products
        round by that.
        """
        self.finished = int(state["finished"])
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor) and name in state:
                setattr(self, name, state[name].to(value.device, copy=True))
            elif isinstance(value, list) and name[0] == "_":
                count = sum(key.startswith(f"{name}.") for key in state)
                own = [state[f"{name}.{k}"].to(self.validation, copy=True) for k in range(count)]
                setattr(self, name, [Factors(*p) for p in zip(own[::2], own[1::2], strict=True)])

    def end_pass(self) -> None:
        """Every sample has been observed once.

        Raises:
            InputError: it has not, or more often.
        """
        wrong = (self.seen != 1).nonzero()
        if len(wrong):
            row = int(wrong[0, 0])
            raise InputError(
                f"sample {row} was observed {int(self.seen[row])} times in pass "
                f"{self.finished + 1} over block {self.name}; each pass takes every sample once"
            )
        self.seen.zero_()
        self._plan()[self.finished].finish()
        self.finished += 1

    def solutions(self) -> list[Solution]:
        """One for each damping.

        Raises:
            InputError: some pass is still to come.
        """
        if not self.done:
            raise InputError(
                f"block {self.name} has had {self.finished} of its {self.needed} passes; its "
                "solutions come after the last one"
            )
        return self._solutions()

    def read(self, block: Block) -> list[Solution]:
        """Solutions for a block whose gradients are kept: one read of them for each pass."""
        for step in self._plan():
            for rows, gradients in block.rows():
                step.take(rows, gradients)
            step.finish()
        return self._solutions()

    def _named(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors in attributes: of one its name, of those in a list of factors by number."""
        found = {}
        for name in names:
            value = getattr(self, name)
            if isinstance(value, torch.Tensor):
                found[name] = value
            elif isinstance(value, list):
                tensors = [side for own in value for side in (own.inputs, own.outputs)]
                found |= {f"{name}.{k}": tensor for k, tensor in enumerate(tensors)}
        return found

    def _by_damping(self, products: torch.Tensor, mean_square: float) -> list[Solution]:
        """The solutions of (parts, n, dampings) products; silent where lambda is 0."""
        ridges = [damping.of(mean_square, self.size) for damping in self.dampings]
        return [
            Solution.of(products[..., column], ridge)
            if ridge
            else Solution.of_silence(len(self.parts), self.samples)
            for column, ridge in enumerate(ridges)
        ]

    @abstractmethod
    def _solutions(self) -> list[Solution]:
        """One for each damping."""

    @abstractmethod
    def _plan(self) -> Sequence[Pass]:
        """The passes in order."""
