"""EKFAC against the dense Kronecker product."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.estimator_oracles import (
    IN,
    OUT,
    close,
    dense_ekfac,
    dense_exact,
    draw,
    layer_block,
    rule,
    solution,
    solve,
)
from layerif.errors import InputError
from layerif.influence.estimators.block import Factors, Part
from layerif.influence.estimators.ekfac import FactorPasses
from layerif.influence.estimators.factored import FactoredGradients, FactoredRows


class TestEkfac:
    @pytest.mark.parametrize("samples", [1, 3, 30])
    def test_equals_the_dense_kronecker_product(self, samples):
        gradients, v = draw(samples, OUT * IN)
        found = solve("ekfac", gradients, v, shape=(OUT, IN))
        close(found.influence, dense_ekfac(gradients, v, rule(gradients), (OUT, IN)))
        assert found.damping == pytest.approx(rule(gradients), rel=1e-12)

    def test_takes_factors_that_were_collected(self):
        gradients, v = draw(20, OUT * IN)
        inputs, outputs = (draw(50, size, seed=size)[0] for size in (IN, OUT))
        factors = inputs.T @ inputs, outputs.T @ outputs
        given = Factors(*map(torch.from_numpy, factors))
        found = solve("ekfac", gradients, v, shape=(OUT, IN), factors=given)
        close(found.influence, dense_ekfac(gradients, v, rule(gradients), (OUT, IN), factors))
        scaled = Factors(7 * given.inputs, given.outputs / 9)
        again = solve("ekfac", gradients, v, shape=(OUT, IN), factors=scaled)
        close(again.influence, found.influence.numpy())
        own = solve("ekfac", gradients, v, shape=(OUT, IN))
        assert not torch.allclose(own.influence, found.influence)

    def test_is_exact_where_the_eigenbases_diagonalise_the_hessian(self):
        """Gradients that are each one entry of the matrix: H is diagonal in the given basis."""
        weights, v = draw(OUT * IN, 1)[0], draw(1, OUT * IN)[1]
        gradients = np.diag(weights[:, 0])
        found = solve("ekfac", gradients, v, shape=(OUT, IN))
        close(found.influence, dense_exact(gradients, v, rule(gradients)))

    def test_a_layer_is_block_diagonal_with_one_lambda(self):
        shapes = [(4, 3), (2, 5)]
        made, gradients, v = layer_block([a * b for a, b in shapes], shapes=shapes)
        found = solution(made, "ekfac")
        assert found.damping == pytest.approx(rule(gradients), rel=1e-12)
        for part, columns, shape in zip(
            found.by_part, (slice(12), slice(12, 22)), shapes, strict=True
        ):
            close(part, dense_ekfac(gradients[:, columns], v[columns], found.damping, shape))

    def test_says_what_it_misses(self):
        gradients, v = draw(3, OUT * IN)
        with pytest.raises(InputError, match=r"out \* in = 12"):
            solve("ekfac", gradients, v)
        wrong = Factors(torch.eye(OUT), torch.eye(IN))
        with pytest.raises(InputError, match=r"\(3, 3\) and \(4, 4\)"):
            solve("ekfac", gradients, v, shape=(OUT, IN), factors=wrong)
        with pytest.raises(InputError, match=r"\(5, 3\)"):
            solve("ekfac", gradients, v, shape=(5, 3))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_position_whose_error_is_rounding_does_not_count(self, dtype):
        """A kernel leaves nothing of it, or some noise, and another batch pads differently."""
        errors, inputs = torch.randn(2, 6, OUT, dtype=dtype), torch.randn(2, 6, IN, dtype=dtype)
        errors[0, 1] *= 1e-3  # small, and of the loss
        errors[:, 0] = 0
        reached = inputs[:, 1:].flatten(0, 1).double()
        for noise, padding in ((0.0, 0), (4 * torch.finfo(dtype).eps, 3)):
            errors[:, 0] = noise
            pad = (0, 0, 0, padding)
            factors = factors_of(
                torch.nn.functional.pad(errors, pad), torch.nn.functional.pad(inputs, pad, value=7)
            )
            torch.testing.assert_close(
                factors.inputs, reached.T @ reached, rtol=1e-6, atol=1e-6, check_dtype=False
            )


def factors_of(errors, inputs):
    """What one batch of factored gradients gives."""
    part = Part("a", torch.zeros(OUT * IN, dtype=torch.float64), (OUT, IN))
    passes = FactorPasses("a", [part], len(errors))
    rows = FactoredRows([FactoredGradients(errors, inputs, 1.0)])
    passes._gather_factors(slice(0, len(errors)), rows)
    return passes.factors[0]
