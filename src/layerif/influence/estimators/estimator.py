"""What an estimator can do, beside the function that it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerif.influence.estimators.base import Damping, EstimatorOptions, Solution
from layerif.influence.estimators.block import Block, Part
from layerif.influence.estimators.passes import Passes

Solve = Callable[[Block, EstimatorOptions], Solution]
Sweep = Callable[[Block, Sequence[Damping], EstimatorOptions], list[Solution]]
OpenPasses = Callable[[str, Sequence[Part], int, Sequence[Damping]], Passes]
Workspace = Callable[[Sequence[tuple[int, int]], int], int]


@dataclass(frozen=True)
class Estimator:
    """A registered estimator.

    Attributes:
        solve: influence through one block.
        damped: whether the result depends on the damping.
        iterative: whether it depends on the tolerance and on the most iterations.
        sweep: for several dampings, with what does not depend on them worked out once.
        passes: opens the form for gradients that are not kept (block name, parts, n, dampings).
        by_position: it uses the factors of the gradients position by position, for which the
            training samples are run once more where gradients are kept.
        workspace: bytes it takes beside the gradients of a block, from the (out, in) of its
            matrices and n; left out where that is little.
    """

    solve: Solve
    damped: bool = True
    iterative: bool = False
    sweep: Sweep | None = None
    passes: OpenPasses | None = None
    by_position: bool = False
    workspace: Workspace | None = None
