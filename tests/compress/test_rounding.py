"""Ranges, round to nearest and GPTQ against their definitions in float64."""

from __future__ import annotations

import pytest
import torch

from helpers.rounding import grid, refitted, rounded
from layerif.calibration.statistics import factorise
from layerif.compress.quantization.gptq import BLOCK, RefittedRounding, gptq
from layerif.compress.quantization.options import GridOptions
from layerif.compress.quantization.ranges import CHUNK
from layerif.compress.quantization.rtn import Rounded, rtn
from layerif.errors import InputError
from layerif.plans.maps.stored import stored_bytes


def problem(rows, columns, *, tokens=300, seed=0, dead=()):
    """Weights, and a Hessian of correlated inputs of which some features are dead."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mix += 5 * torch.eye(columns, dtype=torch.float64) * torch.rand(columns, generator=generator)
    inputs = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mix
    inputs[:, list(dead)] = 0
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) / 10
    return weight, 2 * inputs.T @ inputs / tokens


def ordered(hessian):
    order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = factorise(hessian[order][:, order], "q")
    return type(factor)(factor.upper, factor.dead, factor.damping, order)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ranges", ["weighted", "minmax"])
def test_round_to_nearest_equals_its_definition(bits, symmetric, ranges):
    """A row of 80: the last group of 32 is half as long."""
    weight, hessian = problem(5, 80, dead=(3, *range(32, 64)))
    squares = hessian.diagonal()
    how = grid(method="rtn", symmetric=symmetric, ranges=ranges)
    coded = rtn(weight, squares if ranges == "weighted" else None, bits, how)
    expected = rounded(
        weight, squares, bits, 32, symmetric=symmetric, weighted=ranges == "weighted"
    )
    torch.testing.assert_close(coded.decoded().double(), expected, rtol=0, atol=0)
    assert int(coded.codes.max()) < 2**bits
    assert (coded.zeros is None) == symmetric


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("ranges", ["weighted", "minmax"])
def test_a_minimum_in_place_of_a_zero_point(bits, ranges):
    """Of weights that lie on one side of 0 too, and of a last group that is half as long."""
    weight, hessian = problem(5, 80)
    weight[:2] += 0.5
    squares = hessian.diagonal()
    how = grid(method="rtn", offset="minimum", ranges=ranges)
    coded = rtn(weight, squares if ranges == "weighted" else None, bits, how)
    expected = rounded(weight, squares, bits, 32, minimum=True, weighted=ranges == "weighted")
    torch.testing.assert_close(coded.decoded().double(), expected, rtol=1e-6, atol=1e-7)
    assert coded.zeros.dtype == torch.float16
    plain = rtn(weight, squares, bits, grid(method="rtn"))
    if ranges == "weighted":
        errors = [((each.decoded() - weight) ** 2 @ squares).sum() for each in (coded, plain)]
        assert errors[0] < errors[1]


@pytest.mark.parametrize("order", ["given", "diagonal"])
def test_gptq_refits_beside_a_minimum(order):
    weight, hessian = problem(3, BLOCK + 40)
    how = grid(column_order=order, offset="minimum")
    factor = ordered(hessian) if order == "diagonal" else factorise(hessian, "q")
    coded = gptq(weight, factor, hessian.diagonal(), 3, how)
    expected = refitted(weight, hessian, 3, 32, by_diagonal=order == "diagonal", minimum=True)
    torch.testing.assert_close(coded.decoded().double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("order", ["given", "diagonal"])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True), (4, False)])
@pytest.mark.parametrize("columns", [48, BLOCK + 40])
def test_gptq_equals_the_explicit_inverse_at_every_step(order, bits, symmetric, columns):
    weight, hessian = problem(3, columns, dead=(1, 20))
    how = grid(column_order=order, symmetric=symmetric)
    factor = ordered(hessian) if order == "diagonal" else factorise(hessian, "q")
    coded = gptq(weight, factor, hessian.diagonal(), bits, how)
    expected = refitted(
        weight, hessian, bits, 32, by_diagonal=order == "diagonal", symmetric=symmetric
    )
    torch.testing.assert_close(coded.decoded().double(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("order", ["given", "diagonal"])
def test_a_group_may_be_the_whole_row(order):
    weight, hessian = problem(4, BLOCK + 20)
    how = grid(group_size=0, column_order=order, ranges="minmax")
    factor = ordered(hessian) if order == "diagonal" else factorise(hessian, "q")
    coded = gptq(weight, factor, hessian.diagonal(), 4, how)
    assert coded.scales.shape == (4, 1)
    expected = refitted(
        weight, hessian, 4, BLOCK + 20, by_diagonal=order == "diagonal", weighted=False
    )
    torch.testing.assert_close(coded.decoded().double(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("order", ["given", "diagonal"])
def test_gptq_loses_less_than_rounding_by_its_own_measure(order):
    weight, hessian = problem(16, 96)
    factor = ordered(hessian) if order == "diagonal" else factorise(hessian, "q")
    one = RefittedRounding(weight, grid(column_order=order), factor, hessian)
    plain = Rounded(weight, grid(method="rtn"), hessian.diagonal())
    lost = [one.error(each.at(3)) for each in (one, plain)]
    assert lost[0] < 0.8 * lost[1]
    difference = weight - one.at(3).double()
    by_hand = torch.trace(difference @ hessian @ difference.T) / torch.trace(
        weight @ hessian @ weight.T
    )
    assert lost[0] == pytest.approx(by_hand.item(), rel=1e-6)
    assert torch.equal(one.at(16), weight)


def test_a_change_is_the_difference_of_two_levels():
    weight, hessian = problem(4, 64)
    one = RefittedRounding(weight, grid(column_order="given"), factorise(hessian, "q"), hessian)
    assert torch.equal(one.change(2, 4)(), (one.at(4) - one.at(2)).double())
    assert torch.equal(one.change(3, 16)(), weight - one.at(3))


def test_matrices_beyond_one_chunk_are_the_same_row_by_row():
    rows = 2 * CHUNK // 64 + 3
    weight, hessian = problem(rows, 64)
    weight = weight.float()
    how, squares = grid(method="rtn"), hessian.diagonal()
    whole = rtn(weight, squares, 3, how)
    parts = [rtn(part, squares, 3, how).codes for part in weight.split(100)]
    assert torch.equal(whole.codes, torch.cat(parts))


def test_weights_of_zero_and_scales_too_small_for_16_bits_stay_finite():
    weight = torch.zeros(3, 64)
    weight[1, :32] = 1e-12
    weight[2] = -3.0
    for symmetric in (False, True):
        found = rtn(weight, torch.ones(64), 4, grid(method="rtn", symmetric=symmetric)).decoded()
        assert bool(found.isfinite().all())
        assert not found[0].any()
        assert not found[1, 32:].any()
        # Half a step: a symmetric grid has one value less above 0 than below.
        assert found[2].tolist() == pytest.approx([-3.0] * 64, rel=0.07)


def test_bytes_are_codes_scales_and_zero_points():
    how = grid(group_size=32)
    assert stored_bytes(4, 64, 4, grid(offset="minimum")) == 4 * 64 // 2 + 8 * 2 + 8 * 2
    assert stored_bytes(4, 64, 4, how) == 4 * 64 // 2 + 8 * 2 + 8 // 2
    assert stored_bytes(4, 64, 4, grid(symmetric=True)) == 4 * 64 // 2 + 8 * 2
    # 3 groups a row, the last shorter; 9 zero points of 3 bits in whole bytes.
    assert stored_bytes(3, 80, 3, how) == 3 * 80 * 3 // 8 + 9 * 2 + 4
    assert stored_bytes(3, 80, 3, grid(group_size=0)) == 90 + 3 * 2 + 2
    assert stored_bytes(3, 80, 16, how) == 3 * 80 * 2


def test_groups_of_other_sizes_are_refused():
    with pytest.raises(InputError, match="group_size"):
        GridOptions(group_size=48)
