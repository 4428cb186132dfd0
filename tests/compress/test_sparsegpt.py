"""SparseGPT against its own definition in float64: an explicit inverse at every step."""

from __future__ import annotations

import pytest
import torch

from helpers.sparsegpt_oracle import oracle
from layerif.calibration import statistics
from layerif.calibration.statistics import factorise
from layerif.compress.pruning.sparsegpt import BLOCK, sparsegpt
from layerif.compress.pruning.targets import Pattern, Target
from layerif.errors import NumericalError


def problem(rows, columns, *, tokens=400, seed=0, dead=()):
    """Weights, and a Hessian of correlated inputs of which some features are dead."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mix
    inputs[:, list(dead)] = 0
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight, 2 * inputs.T @ inputs / tokens, inputs


@pytest.mark.parametrize("share", [0.0, 0.13, 0.4713, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("columns", [40, BLOCK + 30])
def test_equals_the_explicit_inverse_at_every_step(share, columns):
    weight, hessian, _ = problem(5, columns)
    zeros = round(share * weight.numel())
    pruned = sparsegpt(weight, factorise(hessian, "q"), Target(zeros))
    expected = oracle(weight, hessian, zeros)
    torch.testing.assert_close(pruned, expected, rtol=1e-9, atol=1e-9)
    assert int((pruned == 0).sum()) == zeros
    if share == 0:
        assert torch.equal(pruned, weight)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "0:4", "4:4", "3:5", "1:2", "7:20"])
def test_patterns_equal_the_oracle(pattern):
    pattern = Pattern.parse(pattern)
    weight, hessian, _ = problem(4, 8 * pattern.group if pattern.group < 20 else 60)
    zeros = weight.numel() // pattern.group * (pattern.group - pattern.keep)
    pruned = sparsegpt(weight, factorise(hessian, "q"), Target(zeros, pattern))
    torch.testing.assert_close(
        pruned, oracle(weight, hessian, zeros, pattern=pattern), rtol=1e-9, atol=1e-9
    )
    kept = pruned.reshape(-1, pattern.group).count_nonzero(dim=1)
    assert (kept == pattern.keep).all()


def test_patterns_choose_by_what_earlier_columns_have_left():
    """Chosen at the start of the block, as without a pattern, other weights would go."""
    weight, hessian, _ = problem(8, 64)
    factor = factorise(hessian, "q")
    pruned = sparsegpt(weight, factor, Target(256, Pattern(2, 4)))
    squares = weight.square() / factor.upper.diagonal().square()
    at_start = squares.view(-1, 4).argsort(dim=1)[:, :2]
    chosen = torch.zeros(128, 4, dtype=torch.bool).scatter_(1, at_start, True).view(8, 64)
    assert not torch.equal(pruned == 0, chosen)


def test_dead_columns_go_first_and_within_the_budget():
    dead = (1, 7, 20, 21, BLOCK + 2)
    weight, hessian, _ = problem(6, BLOCK + 20, dead=dead)
    factor = factorise(hessian, "q")
    for zeros in (0, 11, 30, 31, 400):
        pruned = sparsegpt(weight, factor, Target(zeros))
        torch.testing.assert_close(pruned, oracle(weight, hessian, zeros), rtol=1e-9, atol=1e-9)
        assert int((pruned == 0).sum()) == zeros
        of_dead = int((pruned[:, list(dead)] == 0).sum())
        assert of_dead == min(zeros, 6 * len(dead))


def test_zeros_that_are_there_count_wherever_they_lie():
    """Without taking note of them this would make 64 * 4 zeros more than asked for."""
    weight, hessian, _ = problem(4, 2 * BLOCK)
    weight[:, :BLOCK] = 0
    factor = factorise(hessian, "q")
    zeros = round(0.6 * weight.numel())
    pruned = sparsegpt(weight, factor, Target(zeros))
    assert int((pruned == 0).sum()) == zeros
    torch.testing.assert_close(pruned, oracle(weight, hessian, zeros), rtol=1e-9, atol=1e-9)
    assert int((sparsegpt(weight, factor, Target(100)) == 0).sum()) == 4 * BLOCK


def test_the_weights_that_stay_make_good_for_those_that_go():
    weight, hessian, inputs = problem(16, 64)
    pruned = sparsegpt(weight, factorise(hessian, "q"), Target(512))
    lost, without = (
        ((weight - other) @ inputs.T).square().sum()
        for other in (pruned, weight.masked_fill(pruned == 0, 0))
    )
    assert lost < 0.8 * without


def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse():
    _, hessian, _ = problem(1, 50, dead=(3,))
    factor = factorise(hessian, "q", damping=0.1)
    filled = hessian.clone()
    filled[3, 3] = 1
    filled += 0.1 * filled.diagonal().mean() * torch.eye(50, dtype=torch.float64)
    expected = torch.linalg.cholesky(torch.linalg.inv(filled), upper=True)
    torch.testing.assert_close(factor.upper, expected, rtol=1e-9, atol=1e-12)
    assert factor.dead.nonzero().flatten().tolist() == [3]


def test_a_factorisation_that_fails_is_tried_again_with_more_damping():
    """An eigenvalue of -0.3 of the mean diagonal wants damping between 0.3 and 1."""
    size = 20
    basis = torch.linalg.qr(problem(1, size)[1])[0]
    values = torch.ones(size, dtype=torch.float64)
    values[4] = -0.3
    hessian = basis @ torch.diag(values) @ basis.T
    mean = hessian.diagonal().mean()
    factor = factorise(hessian, "layers.0.mlp.up_proj")
    assert factor.damping == pytest.approx(1.0)
    damped = hessian + factor.damping * mean * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(
        factor.upper.T @ factor.upper, torch.linalg.inv(damped), rtol=1e-8, atol=1e-10
    )
    values[4] = -1e6
    with pytest.raises(NumericalError, match=r"Hessian of layers\.0\.mlp\.up_proj"):
        factorise(basis @ torch.diag(values) @ basis.T, "layers.0.mlp.up_proj")
    assert statistics.ATTEMPTS == 5
