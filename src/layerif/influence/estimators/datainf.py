"""DataInf (arXiv 2310.00902): the mean and the inverse of the Hessian swapped.

    H = mean_i g_i g_i^T + lambda I,   H^-1 ~ mean_i (g_i g_i^T + lambda I)^-1

With c = G v and r_i = |g_i|^2, by Sherman and Morrison:

    I = G x,   x = (v - w) / lambda,   w = (1/n) G^T (c / (lambda + r))

which is the paper's form with K = G G^T never formed: n d operations and not n^2 d, in three passes
over the gradients (r and c, hence lambda; w; G x), or two where lambda is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from layerif.influence.estimators.base import Estimator, Solution
from layerif.influence.estimators.block import Part
from layerif.influence.estimators.factored import Gradients, add_weighted, norms, split_times, times
from layerif.influence.estimators.passes import Pass, Passes, Rows
from layerif.influence.options import Damping


class DataInfPasses(Passes):
    """DataInf in three passes, or in two where every damping is a number."""

    def __init__(
        self, name: str, parts: Sequence[Part], samples: int, dampings: Sequence[Damping]
    ) -> None:
        super().__init__(name, parts, samples, dampings)
        new = self.validation.new_zeros
        self._norms = new(samples)  # r
        self._dots = new(samples)  # c
        self._x = new(self.size, len(dampings))  # n w, then x
        self._products = new(len(parts), samples, len(dampings))
        self._given = all(damping.value is not None for damping in dampings)
        self._ridges = self._ridges_for(1.0) if self._given else new(len(dampings))
        self._weights = new(samples, len(dampings))  # c / (lambda + r)

    def _plan(self) -> Sequence[Pass]:
        last = Pass(self._project, ["_products"])
        if self._given:
            both = Pass(self._measure_and_weigh, ["_norms", "_dots", "_x"], self._solve)
            return both, last
        first = Pass(self._measure, ["_norms", "_dots"], self._measured)
        return first, Pass(self._weigh, ["_x"], self._solve), last

    def _measure(self, rows: Rows, gradients: Gradients) -> None:
        self._norms[rows] = norms(gradients)
        self._dots[rows] = times(gradients, self.validation)

    def _weigh(self, rows: Rows, gradients: Gradients) -> None:
        add_weighted(self._x, gradients, self._weights[rows])

    def _measure_and_weigh(self, rows: Rows, gradients: Gradients) -> None:
        self._measure(rows, gradients)
        self._weights[rows] = self._weights_for(self._dots[rows], self._norms[rows])
        self._weigh(rows, gradients)

    def _project(self, rows: Rows, gradients: Gradients) -> None:
        self._products[:, rows] = split_times(gradients, self._x, self.columns)

    def _measured(self) -> None:
        self._ridges = self._ridges_for(self._norms.mean().item())
        self._weights = self._weights_for(self._dots, self._norms)

    def _ridges_for(self, mean_square: float) -> torch.Tensor:
        ridges = [damping.of(mean_square, self.size) for damping in self.dampings]
        # A silent block has lambda 0; 1 in its place keeps 0/0 out, and its gradients make 0.
        return self.validation.new_tensor([ridge or 1.0 for ridge in ridges])

    def _weights_for(self, dots: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        return dots[:, None] / (self._ridges + norms[:, None])

    def _solve(self) -> None:
        self._x = (self.validation[:, None] - self._x / self.samples) / self._ridges

    def _solutions(self) -> list[Solution]:
        return self._by_damping(self._products, self._norms.mean().item())


DATAINF = Estimator(passes=DataInfPasses)
