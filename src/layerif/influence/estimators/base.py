"""What every estimator shares: the solution that it gives for a block, and what else it can do.

An estimator is one function, `(block, options) -> Solution`; `registry.register` gives it a name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from layerif.influence.options import Damping, SolveOptions

if TYPE_CHECKING:
    from layerif.influence.estimators.block import Block, Part
    from layerif.influence.estimators.passes import Passes


@dataclass(frozen=True, eq=False)
class Solution:
    """Influence of every training sample through one block.

    Attributes:
        by_part: (parts, n) float64, the share of each part: g_ip . x_p, where I_i = g_i . x. Shares
            of a block of several parts may be far larger than their sum, with either sign.
        influence: (n,) float64, I_i = v^T H^-1 g_i: the predicted decrease of the validation loss
            when sample i is upweighted. Positive: the sample helps.
        damping: lambda used; 0 in a silent block, None for an estimator without one.
        silent: every gradient of the block is zero, and so is its influence.
        iterations: steps of an iterative estimator, else None.
        residual: |H x - v| / |v| where a system was solved, else None.
        converged: the residual is at most the tolerance.
    """

    by_part: torch.Tensor
    influence: torch.Tensor
    damping: float | None
    silent: bool = False
    iterations: int | None = None
    residual: float | None = None
    converged: bool = True

    @classmethod
    def of(cls, by_part: torch.Tensor, damping: float | None, **more: object) -> Solution:
        """The solution whose influence is the sum of its parts."""
        return cls(by_part, by_part.sum(0), damping, **more)  # type: ignore[arg-type]

    @classmethod
    def of_silence(cls, parts: int, samples: int, damping: float | None = 0.0) -> Solution:
        """The solution of a block in which every gradient is zero: no influence, and no 0/0."""
        nothing = torch.zeros(parts, samples, dtype=torch.float64)
        return cls(nothing, nothing[0], damping, silent=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it as tensors; what is None is left out."""
        return {
            name: value.cpu().clone()
            if isinstance(value, torch.Tensor)
            else torch.from_numpy(np.array(value))
            for name, value in vars(self).items()
            if value is not None
        }

    @classmethod
    def of_tensors(cls, tensors: dict[str, torch.Tensor]) -> Solution:
        """The solution of which `tensors` gave these."""
        values = {name: t if t.ndim else t.item() for name, t in tensors.items()}
        return cls(**{"damping": None, **values})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Estimator:
    """A registered estimator; it has at least one of `solve`, `sweep` and `passes`.

    Attributes:
        solve: influence through one block, at the options' damping.
        damped: whether the result depends on the damping.
        iterative: whether it depends on the tolerance and on the most iterations.
        sweep: for several dampings, with what does not depend on them worked out once.
        passes: opens the form for gradients that are not kept (block name, parts, n, dampings).
        by_position: it uses the factors of the gradients position by position, for which the
            training samples are run once more where gradients are kept.
        workspace: bytes it takes beside the gradients of a block, from the (out, in) of its
            matrices and n; left out where that is little.
    """

    solve: Callable[[Block, SolveOptions], Solution] | None = None
    damped: bool = True
    iterative: bool = False
    sweep: Callable[[Block, Sequence[Damping], SolveOptions], list[Solution]] | None = None
    passes: Callable[[str, Sequence[Part], int, Sequence[Damping]], Passes] | None = None
    by_position: bool = False
    workspace: Callable[[Sequence[tuple[int, int]], int], int] | None = None

    def solutions(
        self, block: Block, dampings: Sequence[Damping], options: SolveOptions
    ) -> list[Solution]:
        """The block's solution at each damping, with what they share worked out once.

        Args:
            block: its gradients and parts.
            dampings: in place of the options' damping.
            options: the others.
        """
        if self.sweep is not None:
            return self.sweep(block, dampings, options)
        if self.solve is None:
            assert self.passes is not None
            return self.passes(block.name, block.parts, block.samples, dampings).read(block)
        if not self.damped:
            return [self.solve(block, options)] * len(dampings)
        each = (options.but(damping=d.factor, damping_value=d.value) for d in dampings)
        return [self.solve(block, own) for own in each]
