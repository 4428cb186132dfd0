"""Estimators of influence against explicit inverses, in float64, on blocks of every shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.estimator_oracles import (
    DENSE,
    IN,
    OUT,
    close,
    dense_datainf,
    dense_direction,
    dense_exact,
    double_loop_datainf,
    draw,
    layer_block,
    rule,
    solution,
    solve,
)
from layerif.errors import InputError, NumericalError
from layerif.influence.estimators import block
from layerif.influence.estimators.block import Block
from layerif.influence.estimators.lissa import largest_eigenvalue
from layerif.influence.estimators.registry import ESTIMATORS, register_estimator
from layerif.influence.options import SolveOptions

SOLVING = ("datainf", "exact", "cg", "lissa", "ekfac")


@pytest.mark.parametrize("shape", [(7, 12), (12, 12), (40, 12), (1, 5), (6, 1), (1, 1)])
@pytest.mark.parametrize("name", DENSE)
def test_equals_the_explicit_inverse(name, shape):
    gradients, v = draw(*shape)
    found = solve(name, gradients, v, tolerance=1e-13)
    close(found.influence, DENSE[name](gradients, v, rule(gradients)))
    assert found.influence.dtype == torch.float64
    assert not found.silent
    if ESTIMATORS.find(name).damped:
        assert found.damping == pytest.approx(rule(gradients), rel=1e-12)
    else:
        assert found.damping is None


@pytest.mark.parametrize("shape", [(7, 12), (12, 12), (40, 12), (1, 12)])
def test_datainf_equals_the_published_double_loop(shape):
    gradients, v = draw(*shape)
    found = solve("datainf", gradients, v)
    close(found.influence, double_loop_datainf(gradients, v, rule(gradients)))


@st.composite
def blocks_of_any_kind(sampler):
    """Wide, tall and square; of any rank; with zero and duplicated rows; large and small."""
    samples, size = sampler(st.integers(1, 9)), sampler(st.integers(1, 12))
    rank = sampler(st.integers(1, min(samples, size)))
    scale = sampler(st.sampled_from([1e-6, 1.0, 1e4]))
    gradients, v = draw(samples, size, sampler(st.integers(0, 999)), rank=rank, scale=scale)
    for row in sampler(st.lists(st.integers(1, samples), max_size=2)):
        gradients[row % samples] = 0
    for row in sampler(st.lists(st.integers(1, samples), max_size=2)):
        gradients[row % samples] = gradients[row - 1]
    return gradients, v


@settings(max_examples=60, deadline=None)
@given(blocks_of_any_kind(), st.sampled_from([0.1, 10.0]))
def test_any_block_equals_the_explicit_inverse(pair, factor):
    gradients, v = pair
    for name in ("datainf", "exact", "cg"):
        found = solve(name, gradients, v, factor=factor, tolerance=1e-12)
        assert found.silent == (not gradients.any())
        expected = (
            np.zeros(len(gradients))
            if found.silent
            else DENSE[name](gradients, v, rule(gradients, factor))
        )
        close(found.influence, expected)
        assert not found.influence.numpy()[~gradients.any(1)].any()
        assert found.converged


@settings(max_examples=30, deadline=None)
@given(blocks_of_any_kind())
def test_iterative_estimators_are_as_near_as_their_residual_says(pair):
    """|I_i - I_i exactly| <= |g_i| |H^-1| |H x - v|, and |H^-1| is at most 1 / lambda."""
    gradients, v = pair
    largest = np.linalg.norm(gradients, 2) ** 2 / len(gradients)
    if largest == 0:
        return
    for ridge in (0.01 * largest, largest):
        for name in ("lissa", "cg"):
            for tolerance, iterations in ((1e-9, 5000), (1e-3, 5000), (1e-9, 2)):
                found = solve(
                    name,
                    gradients,
                    v,
                    value=float(ridge),
                    tolerance=tolerance,
                    max_iterations=iterations,
                )
                assert found.converged == (found.residual <= tolerance)
                assert found.converged or iterations == 2
                assert found.iterations <= iterations
                bound = np.linalg.norm(gradients, axis=1) * found.residual / ridge
                gap = np.abs(found.influence.numpy() - dense_exact(gradients, v, ridge))
                slack = 1e-9 * np.abs(gradients @ v).max() / ridge
                assert (gap <= bound * np.linalg.norm(v) + slack).all()


def ill_conditioned(samples=30, size=400):
    """Gradients with a common direction, as a language model's have: lambda_max / lambda is 1e4."""
    gradients, v = draw(samples, size)
    common = np.random.default_rng(9).normal(size=size)
    return gradients + 5 * common, v + common


def test_exact_is_accurate_at_the_small_lambda_of_datainf():
    """Without float64, or by v - G^T (...) taken apart, 2e-4 to 2e-2 of it is lost."""
    for samples, size in ((30, 400), (400, 60)):
        gradients, v = ill_conditioned(samples, size)
        found = solve("exact", gradients, v)
        close(found.influence, dense_exact(gradients, v, rule(gradients)))
        assert found.residual < 1e-10
        assert found.converged
        close(solve("cg", gradients, v, tolerance=1e-11).influence, found.influence.numpy())


def test_at_a_small_lambda_the_exact_influence_saturates():
    """What v holds of the samples' span is reproduced: the sum of I tends to n for v = mean g."""
    gradients, _ = draw(6, 50)
    found = solve("exact", gradients, gradients.mean(0), factor=1e-6)
    assert found.influence.sum().item() == pytest.approx(6, rel=1e-4)


def test_lissa_says_that_it_does_not_converge_at_the_lambda_of_datainf():
    gradients, v = ill_conditioned()
    found = solve("lissa", gradients, v, max_iterations=200)
    assert not found.converged
    assert found.iterations == 200
    assert found.residual > 1e-2
    assert found.influence.isfinite().all()


def test_cg_says_where_it_has_not_converged():
    gradients, v = ill_conditioned()
    found = solve("cg", gradients, v, max_iterations=3)
    assert (found.converged, found.iterations) == (False, 3)
    beyond = solve("cg", gradients, v, tolerance=1e-30)
    assert not beyond.converged
    assert beyond.residual < 1e-10, "it stops where rounding allows no more"
    assert beyond.iterations < 1000


def test_exact_refuses_a_lambda_below_rounding():
    gradients, v = draw(6, 20, rank=2)
    with pytest.raises(NumericalError, match=r"block b .*singular"):
        solve("exact", gradients, v, value=1e-30)


def test_lissa_draws_from_a_generator_of_its_own():
    gradients, v = draw(9, 12)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = solve("lissa", gradients, v, value=1.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(solve("lissa", gradients, v, value=1.0).influence, first.influence)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5), (1, 1)])
def test_the_largest_eigenvalue_is_found(shape):
    gradients, v = draw(*shape)
    made = Block.of("b", torch.from_numpy(gradients), torch.from_numpy(v))
    expected = np.linalg.norm(gradients, 2) ** 2 / len(gradients)
    found = [largest_eigenvalue(made, seed) for seed in range(5)]
    assert all(0.9 * expected <= value <= expected * (1 + 1e-12) for value in found)


@pytest.mark.parametrize("samples", [6, 40], ids=["n < d", "n > d"])
@pytest.mark.parametrize("name", [name for name in ESTIMATORS.names() if name != "ekfac"])
def test_a_block_of_several_matrices_is_one_matrix_and_its_parts_add_up(name, samples):
    sizes = [7, 3, 9]
    made, gradients, v = layer_block(sizes, samples)
    found = solution(made, name, damping_value=0.5, tolerance=1e-12)
    whole = solve(name, gradients, v, value=0.5, tolerance=1e-12)
    close(found.influence, whole.influence.numpy())
    close(found.by_part.sum(0), whole.influence.numpy())
    if name in ("exact", "cg", "lissa"):
        x = dense_direction(gradients, v, 0.5)
    elif name == "datainf":
        inverses = [np.linalg.inv(np.outer(g, g) + 0.5 * np.eye(len(v))) for g in gradients]
        x = np.mean(inverses, axis=0) @ v
    else:
        x = v
    lengths = np.linalg.norm(gradients, axis=1) * np.linalg.norm(v) if name == "cosine" else 1.0
    ends = np.cumsum(sizes)
    for part, end, size in zip(found.by_part, ends, sizes, strict=True):
        own = slice(end - size, end)
        close(part, gradients[:, own] @ x[own] / lengths)


@pytest.mark.parametrize("name", ESTIMATORS.names())
class TestEveryEstimator:
    def test_is_silent_where_there_is_no_gradient(self, name):
        for samples in (3, 20):
            for value in (None, 0.5):
                found = solve(
                    name, np.zeros((samples, 12)), draw(1, 12)[1], value=value, shape=(OUT, IN)
                )
                assert found.silent
                assert not found.influence.any()
                assert found.damping in (0.0, None)
                assert found.converged

    def test_gives_nothing_where_the_validation_gradient_is_zero(self, name):
        for samples in (3, 20):
            found = solve(name, draw(samples, 12)[0], np.zeros(12), shape=(OUT, IN))
            assert not found.influence.any()
            assert found.residual in (0.0, None)
            assert found.converged

    def test_a_zero_gradient_has_no_influence(self, name):
        gradients, v = draw(5, 12)
        gradients[2] = 0
        found = solve(name, gradients, v, value=0.5, shape=(OUT, IN)).influence
        assert found[2] == 0
        assert found[[0, 1, 3, 4]].all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_reads_any_dtype_in_float64(self, name, dtype):
        gradients, v = draw(9, 12)
        rounded = torch.from_numpy(gradients).to(dtype)
        found = solve(name, rounded, v, value=0.5, shape=(OUT, IN))
        same = solve(name, rounded.double(), v, value=0.5, shape=(OUT, IN))
        assert torch.equal(found.influence, same.influence)

    @pytest.mark.parametrize("samples", [5, 40])
    def test_pieces_of_any_size_change_nothing(self, name, samples, monkeypatch):
        gradients, v = draw(samples, 12)
        whole = solve(name, gradients, v, value=0.5, shape=(OUT, IN))
        monkeypatch.setattr(block, "CHUNK", 30)
        monkeypatch.setattr(block, "COLUMNS", 5)
        close(
            solve(name, gradients, v, value=0.5, shape=(OUT, IN)).influence, whole.influence.numpy()
        )

    def test_the_order_of_samples_changes_nothing(self, name):
        gradients, v = draw(9, 12)
        order = np.random.default_rng(1).permutation(9)
        found = solve(name, gradients, v, value=0.5, shape=(OUT, IN), tolerance=1e-12)
        turned = solve(name, gradients[order], v, value=0.5, shape=(OUT, IN), tolerance=1e-12)
        close(turned.influence, found.influence.numpy()[order])

    def test_gradients_on_disk_are_never_copied_as_a_whole(self, name, tmp_path, monkeypatch):
        """No tensor made on the way is as large as G, or more than n x n, out x out or a piece."""
        samples, out, columns = 50, 60, 40
        monkeypatch.setattr(block, "CHUNK", 6000)
        monkeypatch.setattr(block, "COLUMNS", 100)
        path = tmp_path / "gradients.f32"
        draw(samples, out * columns)[0].astype(np.float32).tofile(path)
        mapped = np.memmap(path, np.float32, mode="r+", shape=(samples, out * columns))
        gradients = torch.from_numpy(mapped)
        v = draw(1, out * columns, seed=1)[1]
        with Largest() as largest:
            solve(name, gradients, v, shape=(out, columns), value=1.0)
        assert largest.made <= 7200, f"G holds {gradients.numel()} numbers"


class Largest(TorchDispatchMode):
    """Remembers the numbers in the largest tensor that any operation made afresh."""

    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        before = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and (
                tensor.untyped_storage().data_ptr() not in before
            ):
                self.made = max(self.made, tensor.numel())
        return result


@pytest.mark.parametrize(
    ("name", "value", "reads"),
    [
        ("datainf", None, 3),
        ("datainf", 0.5, 2),
        ("grad_dot", None, 1),
        ("cosine", None, 1),
        ("exact", None, 1),
        ("ekfac", None, 3),
    ],
)
def test_gradients_are_read_no_more_often_than_needed(name, value, reads, monkeypatch):
    counted = []
    for method in ("rows", "columns"):
        original = getattr(Block, method)
        monkeypatch.setattr(Block, method, lambda self, f=original: counted.append(f) or f(self))
    solve(name, *draw(5, 12), value=value, shape=(OUT, IN))
    assert len(counted) == reads


def test_a_fixed_number_is_lambda_in_every_block():
    gradients, v = draw(7, 12)
    for scale in (1.0, 100.0):
        found = solve("datainf", scale * gradients, v, value=0.25)
        assert found.damping == 0.25
        close(found.influence, dense_datainf(scale * gradients, v, 0.25))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: SolveOptions(damping=0.0), "damping=0.0"),
        (lambda: SolveOptions(damping=math.nan), "damping=.*nan"),
        (lambda: SolveOptions(damping_value=-1.0), "damping_value=-1.0"),
        (lambda: SolveOptions(damping_sweep=(0.1, 0.0)), "damping_sweep=0.0"),
        (lambda: SolveOptions(tolerance=0.0), "tolerance"),
        (lambda: SolveOptions(max_iterations=0), "max_iterations"),
        (
            lambda: ESTIMATORS.find("datainv"),
            "'datainv'; did you mean datainf",
        ),
        (lambda: register_estimator("cg", ESTIMATORS.find("cg")), "'cg'"),
        (lambda: Block("b", (), ()), "sample"),
        (lambda: solve("cg", np.zeros((0, 3)), np.zeros(3)), "sample"),
        (lambda: solve("cg", np.zeros((2, 4)), np.zeros(3)), r"\[\(2, 4\)\].*\[3\]"),
    ],
)
def test_what_is_wrong_is_named(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()
