"""Gradients that are not kept, several dampings at once, and the published procedure."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from helpers.estimator_oracles import IN, OUT, close, draw, layer_block, rule, solution, solve
from layerif.errors import InputError
from layerif.influence.estimators.block import Block, Factors
from layerif.influence.estimators.registry import ESTIMATORS, register_estimator
from layerif.influence.options import Damping, SolveOptions
from layerif.influence.sweeping import rank_stability

STREAMED = [name for name in ESTIMATORS.names() if ESTIMATORS.find(name).passes is not None]


def stream(name, made, dampings, dtype=torch.float64, seed=0):
    """Solutions from batches in an order that differs from pass to pass; the passes, too."""
    passes = ESTIMATORS.find(name).passes(made.name, made.parts, made.samples, dampings)
    generator = np.random.default_rng(seed)
    whole = torch.cat(made.gradients, 1).to(dtype)
    taken = 0
    while not passes.done:
        for rows in np.array_split(generator.permutation(made.samples), 3):
            passes.observe(torch.from_numpy(rows), whole[rows])
        passes.end_pass()
        taken += 1
    assert taken == passes.needed
    return passes.solutions(), passes


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("samples", [7, 40])
@pytest.mark.parametrize("value", [None, 0.5])
def test_gradients_that_go_by_give_what_kept_ones_give(name, samples, value):
    made, _, _ = layer_block([8, 6], samples, shapes=[(4, 2), (2, 3)])
    damping = Damping(value=value)
    kept = solution(made, name, damping_value=value)
    ((found,), _) = stream(name, made, [damping])
    close(found.by_part, kept.by_part.numpy(), 1e-12)
    assert (found.damping or 0) == pytest.approx(kept.damping or 0, rel=1e-12)


def test_passes_needed():
    gradients, v = (torch.from_numpy(a) for a in draw(7, 12))
    eye = Factors(torch.eye(IN), torch.eye(OUT))

    def needed(name, *dampings, factors=None):
        made = Block.of("b", gradients, v, shape=(OUT, IN), factors=factors)
        return ESTIMATORS.find(name).passes("b", made.parts, 7, dampings).needed

    given, ruled = Damping(value=0.5), Damping()
    assert needed("datainf", ruled) == needed("datainf", ruled, given) == 3
    assert needed("datainf", given) == needed("datainf", given, given) == 2
    assert needed("grad_dot", ruled) == needed("cosine", ruled) == 1
    assert (needed("ekfac", ruled), needed("ekfac", ruled, factors=eye)) == (3, 2)


@pytest.mark.parametrize("name", ["datainf", "grad_dot", "cosine"])
def test_what_is_remembered_are_vectors(name):
    """Nothing of n x d numbers stays, whatever the batches."""
    made, _, _ = layer_block([400], samples=300)
    _, passes = stream(name, made, [Damping()])
    kept = [value.numel() for value in vars(passes).values() if isinstance(value, torch.Tensor)]
    assert max(kept) == 400


def test_passes_of_silence():
    made = Block.of("b", torch.zeros(4, 12), torch.ones(12), shape=(OUT, IN))
    for name in STREAMED:
        for damping in (Damping(), Damping(value=0.5)):
            ((found,), _) = stream(name, made, [damping])
            assert found.silent
            assert not found.influence.any()


def test_passes_refuse_what_would_spoil_the_sums():
    made = Block.of("layers.0.q", torch.ones(4, 12), torch.ones(12))
    passes = ESTIMATORS.find("datainf").passes(made.name, made.parts, 4, [Damping()])
    with pytest.raises(InputError, match=r"\(2, 5\) .*block layers"):
        passes.observe(slice(0, 2), torch.ones(2, 5))
    passes.observe(slice(0, 3), torch.ones(3, 12))
    with pytest.raises(InputError, match=r"sample 3 .*0 times in pass 1 .*block layers"):
        passes.end_pass()
    passes.observe(torch.tensor([3, 3]), torch.ones(2, 12))
    with pytest.raises(InputError, match=r"sample 3 .*2 times"):
        passes.end_pass()
    with pytest.raises(InputError, match="0 of its 3"):
        passes.solutions()
    _, done = stream("datainf", made, [Damping()])
    with pytest.raises(InputError, match="all of its 3"):
        done.observe(slice(0, 4), torch.ones(4, 12))


def swept(made, name, factors, **options):
    dampings = [Damping(factor) for factor in factors]
    chosen = SolveOptions(estimator=name, **options)
    return ESTIMATORS.find(name).solutions(made, dampings, chosen)


@pytest.mark.parametrize("name", ESTIMATORS.names())
@pytest.mark.parametrize("samples", [7, 40])
def test_a_sweep_gives_what_single_solutions_give(name, samples):
    gradients, v = draw(samples, 12)
    made = Block.of("b", torch.from_numpy(gradients), torch.from_numpy(v), shape=(OUT, IN))
    factors = [0.01, 0.1, 10.0]
    solutions = swept(made, name, factors, tolerance=1e-11, max_iterations=20_000)
    for factor, found in zip(factors, solutions, strict=True):
        alone = solve(
            name,
            gradients,
            v,
            factor=factor,
            shape=(OUT, IN),
            tolerance=1e-11,
            max_iterations=20_000,
        )
        close(found.influence, alone.influence.numpy())
        assert found.converged
        if found.damping is not None:
            assert found.damping == pytest.approx(rule(gradients, factor), rel=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_a_sweep_over_a_silent_block_is_silent(name):
    made = Block.of("b", torch.zeros(4, 12), torch.ones(12), shape=(OUT, IN))
    solutions = swept(made, name, [0.1, 1.0])
    assert [found.silent for found in solutions] == [True, True]


@pytest.mark.parametrize(("name", "most"), [("datainf", 3), ("exact", 1), ("ekfac", 3)])
def test_a_sweep_reads_the_gradients_no_more_often_than_one_solution(name, most, monkeypatch):
    counted = []
    for method in ("rows", "columns"):
        original = getattr(Block, method)
        monkeypatch.setattr(Block, method, lambda self, f=original: counted.append(f) or f(self))
    gradients, v = draw(7, 12)
    made = Block.of("b", torch.from_numpy(gradients), torch.from_numpy(v), shape=(OUT, IN))
    swept(made, name, [0.01, 0.1, 1.0, 10.0])
    assert len(counted) == most


def test_rank_stability_is_spearmans_correlation_of_each_pair():
    scores = np.random.default_rng(0).normal(size=(3, 10))
    found = rank_stability([0.01, 0.1, 1.0], scores)
    assert found["dampings"] == [0.01, 0.1, 1.0]
    for i in range(3):
        for j in range(3):
            expected = spearmanr(scores[i], scores[j]).statistic
            assert found["spearman"][i][j] == pytest.approx(expected, abs=1e-12)
    off_diagonal = [found["spearman"][i][j] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found["least"] == min(off_diagonal)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_rank_stability_has_no_nan():
    found = rank_stability([0.1, 1.0], [[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    assert found["spearman"] == [[1.0, None], [None, None]]
    assert found["least"] is None
    assert rank_stability([0.1], [1.0, 2.0])["least"] is None
    with pytest.raises(InputError, match="3 dampings"):
        rank_stability([0.1, 1.0, 10.0], [[1.0, 2.0], [1.0, 2.0]])
    with pytest.raises(InputError, match="not finite"):
        rank_stability([0.1], [[1.0, float("nan")]])


def test_an_estimator_of_ones_own_is_one_function(monkeypatch):
    from layerif.influence.estimators.base import Solution

    monkeypatch.setattr(ESTIMATORS, "_registered", dict(ESTIMATORS._registered))

    def halved(made, _options):
        return Solution.of(made.products(made.validation / 2), None)

    register_estimator("halved", halved)
    gradients, v = draw(5, 12)
    close(solve("halved", gradients, v).influence, gradients @ v / 2)
    assert ESTIMATORS.names()[-1] == "halved"


@pytest.fixture(scope="module")
def published():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "published_datainf.py"
    spec = importlib.util.spec_from_file_location("published_datainf", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_published_procedure_gives_the_same_influence(published):
    made = {name: draw(6, 12, seed) for seed, name in enumerate(("q", "up"))}
    checks = {name: draw(4, 12, seed + 10)[0] for seed, name in enumerate(("q", "up"))}
    train = published.by_sample({n: torch.from_numpy(g) for n, (g, _) in made.items()})
    validation = published.by_sample({n: torch.from_numpy(g) for n, g in checks.items()})
    averaged = published.averaged(train, validation)
    each = published.per_validation_sample(train, validation)
    means = {name: torch.from_numpy(rows.mean(0)) for name, rows in checks.items()}
    dots = published.identity(train, means)
    for name, (gradients, _) in made.items():
        v = checks[name].mean(0)
        # lambda and the products are float32 there.
        close(averaged[name], solve("datainf", gradients, v).influence.numpy(), 1e-5)
        close(each[name].mean(1), solve("datainf", gradients, v).influence.numpy(), 1e-5)
        close(dots[name], gradients @ v, 1e-6)


def test_the_published_procedure_collects_the_gradients_of_one_sample_at_a_time(published):
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    batches = [torch.randn(1, 3) for _ in range(4)]
    found = published.collect(model, batches, lambda m, x: m(x).square().sum())
    assert [set(row) for row in found.values()] == [{"weight"}] * 4
    expected = 2 * model(batches[1]).T @ batches[1]
    torch.testing.assert_close(found[1]["weight"], expected)
