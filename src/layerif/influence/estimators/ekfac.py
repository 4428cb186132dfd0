"""EK-FAC (arXiv 1806.03884; for language models arXiv 2308.03296), one trainable matrix a part.

The Kronecker factors of the Fisher information, A = E[a a^T] of the inputs and S = E[e e^T] of the
output's gradients, give the eigenbases U_A and U_S; the eigenvalues are taken from the per-sample
gradients G_i (out x in) themselves:

    Lambda = E_i[(U_S^T G_i U_A)^2]
    x = U_S ( U_S^T V U_A / (Lambda + lambda) ) U_A^T,   I_i = <G_i, x>

Only eigenvectors of A and S are used, so their scale does not matter. The expectations are over
the positions that the loss reaches, where gradients come in factors. A block of gradients alone
knows of no positions: unless its factors are given they are formed over samples, A = E[G_i^T G_i]
and S = E[G_i G_i^T], what a matrix normal distribution of the gradients would have.

mean(Lambda) = mean |g|^2 / d, as a rotation keeps lengths: the rule lambda = factor * mean(Lambda)
is that of every other estimator. In a block of several matrices H is block-diagonal by matrix, with
one lambda.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from layerif.errors import InputError
from layerif.influence.estimators.base import Estimator, Solution
from layerif.influence.estimators.block import Factors, Part
from layerif.influence.estimators.factored import FactoredRows, Gradients, split_times
from layerif.influence.estimators.passes import Pass, Passes, Rows
from layerif.influence.options import Damping


def ekfac_workspace(shapes: Sequence[tuple[int, int]], _samples: int) -> int:
    """Bytes beside the gradients: factors, eigenvectors, and what their decomposition takes."""
    return 3 * 8 * sum(out**2 + columns**2 for out, columns in shapes)


class EkfacPasses(Passes):
    """EK-FAC in three passes, or in two where every part brings its factors."""

    def __init__(
        self, name: str, parts: Sequence[Part], samples: int, dampings: Sequence[Damping]
    ) -> None:
        super().__init__(name, parts, samples, dampings)
        self._factors = [self._start(part) for part in parts]
        self._given = all(part.factors is not None for part in parts)
        self._bases: list[Factors] = []  # eigenvectors U_A and U_S of each part
        self._eigenvalues = torch.zeros_like(self.validation)  # Lambda of all parts, flat
        self._x = self.validation.new_zeros(self.size, len(dampings))
        self._products = self.validation.new_zeros(len(parts), samples, len(dampings))
        if self._given:
            self._diagonalise()

    def _plan(self) -> Sequence[Pass]:
        later = (
            Pass(self._gather_eigenvalues, ["_eigenvalues"], self._solve),
            Pass(self._project, ["_products"]),
        )
        first = Pass(self._gather_factors, ["_factors"], self._diagonalise)
        return later if self._given else (first, *later)

    def _gather_factors(self, _index: Rows, rows: Gradients) -> None:
        if isinstance(rows, FactoredRows):
            self._gather_positions(rows)
            return
        for part, own, factors in zip(self.parts, self.columns, self._factors, strict=True):
            if part.factors is None:
                matrices = rows[:, own].unflatten(1, _shape(part))  # (b, out, in)
                by_input = matrices.flatten(0, 1)
                by_output = matrices.transpose(0, 1).flatten(1)
                factors.inputs.addmm_(by_input.T, by_input)
                factors.outputs.addmm_(by_output, by_output.T)

    def _gather_positions(self, rows: FactoredRows) -> None:
        for part, factors, own in zip(self.parts, self._factors, rows.parts, strict=True):
            if part.factors is None:
                # Padding, which the loss does not reach, has inputs too.
                errors = own.errors.flatten(0, 1)
                inputs = (own.inputs * own.reached()[..., None]).flatten(0, 1)
                factors.inputs.add_((inputs.T @ inputs).to(factors.inputs))
                factors.outputs.add_((errors.T @ errors).to(factors.outputs))

    def _gather_eigenvalues(self, _index: Rows, rows: Gradients) -> None:
        gradients = rows.formed() if isinstance(rows, FactoredRows) else rows
        for part, own, basis in zip(self.parts, self.columns, self._bases, strict=True):
            out, columns = _shape(part)
            matrices = gradients[:, own].unflatten(1, (out, columns))
            turned = basis.outputs.T @ matrices.transpose(0, 1).flatten(1)  # (out, b in)
            turned = turned.view(out, -1, columns) @ basis.inputs
            self._eigenvalues[own] += turned.square().sum(1).flatten()

    def _project(self, rows: Rows, gradients: Gradients) -> None:
        self._products[:, rows] = split_times(gradients, self._x, self.columns)

    def _diagonalise(self) -> None:
        self._bases = [
            Factors(*(torch.linalg.eigh(side)[1].contiguous() for side in (f.inputs, f.outputs)))
            for f in self._factors
        ]
        self._factors = []

    def _solve(self) -> None:
        self._eigenvalues /= self.samples
        mean_square = self._eigenvalues.sum().item()
        for column, damping in enumerate(self.dampings):
            ridge = damping.of(mean_square, self.size)
            for part, own, basis in zip(self.parts, self.columns, self._bases, strict=True):
                shape = _shape(part)
                turned = basis.outputs.T @ self.validation[own].view(shape) @ basis.inputs
                # In a silent block lambda is 0; 1 in its place keeps 0/0 out.
                turned /= self._eigenvalues[own].view(shape) + (ridge or 1.0)
                turned = basis.outputs @ turned @ basis.inputs.T
                self._x[own, column] = turned.flatten()

    def _solutions(self) -> list[Solution]:
        return self._by_damping(self._products, self._eigenvalues.sum().item())

    def _start(self, part: Part) -> Factors:
        """The factors given, or zeros to gather them in."""
        out, columns = _shape(part)
        if part.factors is None:
            new = self.validation.new_zeros
            return Factors(new(columns, columns), new(out, out))
        inputs, outputs = part.factors.inputs, part.factors.outputs
        if inputs.shape != (columns, columns) or outputs.shape != (out, out):
            raise InputError(
                f"the factors of {part.name} have shapes {tuple(inputs.shape)} (inputs) and "
                f"{tuple(outputs.shape)} (outputs); expected {(columns, columns)} and "
                f"{(out, out)}"
            )
        return Factors(inputs.to(self.validation), outputs.to(self.validation))


class FactorPasses(EkfacPasses):
    """The factors alone, for gradients that are kept: one pass of what comes in factors."""

    def __init__(self, name: str, parts: Sequence[Part], samples: int) -> None:
        super().__init__(name, parts, samples, ())

    @property
    def factors(self) -> list[Factors]:
        """Those of each part."""
        return self._factors

    def _plan(self) -> Sequence[Pass]:
        return (Pass(self._gather_factors, ["_factors"]),)


def _shape(part: Part) -> tuple[int, int]:
    if part.shape is None:
        raise InputError(
            f"EK-FAC works on matrices, and the shape of {part.name} is not given; expected "
            f"shape=(out, in) with out * in = {part.size}"
        )
    return part.shape


EKFAC = Estimator(passes=EkfacPasses, by_position=True, workspace=ekfac_workspace)
