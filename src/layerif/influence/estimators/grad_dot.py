"""Gradient dot product: TracIn (arXiv 2002.08484) with one checkpoint, I = G v."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from layerif.influence.estimators.base import Estimator, Solution
from layerif.influence.estimators.block import Part
from layerif.influence.estimators.factored import Gradients, norms, split_times
from layerif.influence.estimators.passes import Pass, Passes, Rows
from layerif.influence.options import Damping


class DotPasses(Passes):
    """The products in one pass; the same for every damping, as there is no Hessian."""

    def __init__(
        self, name: str, parts: Sequence[Part], samples: int, dampings: Sequence[Damping]
    ) -> None:
        super().__init__(name, parts, samples, dampings)
        self._norms = self.validation.new_zeros(samples)  # r
        self._products = self.validation.new_zeros(len(parts), samples)  # c, by part

    def _plan(self) -> Sequence[Pass]:
        return (Pass(self._measure, ["_norms", "_products"]),)

    def _measure(self, rows: Rows, gradients: Gradients) -> None:
        self._norms[rows] = norms(gradients)
        self._products[:, rows] = split_times(gradients, self.validation, self.columns)

    def _solutions(self) -> list[Solution]:
        silent = not self._norms.any()
        return [Solution.of(self._influence(), None, silent=silent) for _ in self.dampings]

    def _influence(self) -> torch.Tensor:
        return self._products


GRAD_DOT = Estimator(damped=False, passes=DotPasses)
