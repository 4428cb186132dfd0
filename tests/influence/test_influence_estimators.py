"""Scoring a model with every estimator, with matrices or whole layers as blocks."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.estimator_oracles import (
    DENSE,
    close,
    dense_datainf,
    dense_direction,
    dense_ekfac,
    rule,
)
from helpers.scoring import (
    ALPHA,
    DAMPING,
    RANK,
    SEED,
    TRAIN,
    VALIDATION,
    autograd_gradients,
    completion_loss,
    kronecker_factors,
    measure,
)
from helpers.tiny import LAYERS, tiny_model, tiny_tokenizer
from layerif.artifacts import LayerScores
from layerif.errors import InputError
from layerif.influence.estimators.base import Solution
from layerif.influence.estimators.registry import ESTIMATORS, register_estimator
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import find_decoder_layers


@functools.cache
def gradients():
    """For each projection of the float64 model (samples, d) gradients by autograd, and v (d,)."""
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    checks = autograd_gradients(model, tokenizer, VALIDATION)
    return autograd_gradients(model, tokenizer, TRAIN), [rows.mean(0) for rows in checks]


@functools.cache
def position_factors():
    """For each projection E[u u^T] and E[e e^T], u = A a, sample by sample without padding."""
    model = tiny_model(dtype=torch.float64)
    projections = find_decoder_layers(model).projections
    lora = FreshLora(RANK, ALPHA, SEED)
    seen = [[] for _ in projections]
    for row, projection in enumerate(projections):
        down = lora.down(projection).double()

        def keep(_module, args, output, row=row, down=down):
            output.retain_grad()
            seen[row].append(((args[0] @ down.T)[0].detach(), output))

        projection.module.register_forward_hook(keep)
    for sample in TRAIN:
        completion_loss(model, sample).backward()
    return [kronecker_factors([(u, output.grad[0]) for u, output in pairs]) for pairs in seen]


def scored(estimator, **options):
    return measure(tiny_model(dtype=torch.float64), estimator=estimator, **options)


@pytest.mark.parametrize("estimator", [*DENSE, "ekfac"])
def test_a_models_influence_equals_the_dense_form(estimator):
    # EK-FAC and the exact inverse at a lambda where an explicit inverse keeps its digits.
    factor = 100.0 if estimator == "ekfac" else DAMPING
    scores = scored(estimator, damping=factor, tolerance=1e-12)
    found_and_expected = zip(scores.projection_influence, *gradients(), strict=True)
    for row, (found, train, v) in enumerate(found_and_expected):
        ridge = rule(train, factor)
        if estimator == "ekfac":
            factors = position_factors()[row]
            expected = dense_ekfac(train, v, ridge, (len(v) // RANK, RANK), factors)
        else:
            expected = DENSE[estimator](train, v, ridge).astype(np.float64)
        close(found, expected)
    layers = np.zeros_like(scores.influence)
    for row, projection in zip(scores.projection_influence, scores.projections, strict=True):
        layers[projection.layer] += row
    close(scores.influence, layers)


@pytest.mark.parametrize("architecture", ["phi", "opt"])
def test_ekfac_depends_on_neither_batches_nor_padding(architecture):
    """A first token's query has an error of 0 or 1e-18, by the kernel; counted it moves 1e-2."""
    model = tiny_model(architecture, torch.float64)
    ways = [(2048, "right"), (40, "right"), (100, "left"), (2048, "left")]
    first, *others = (
        measure(
            model, estimator="ekfac", keep="passes", batch_tokens=tokens, padding_side=side
        ).projection_influence
        for tokens, side in ways
    )
    scale = np.abs(first).max(axis=1, keepdims=True)
    assert all(np.abs((other - first) / scale).max() < 1e-12 for other in others)


@pytest.mark.parametrize("estimator", ["datainf", "exact", "cosine"])
def test_a_layer_as_one_block(estimator):
    scores = scored(estimator, block="layer", damping=10.0)
    assert list(scores.record.blocks) == [f"layers.{layer}" for layer in range(LAYERS)]
    train, means = gradients()
    for layer in range(LAYERS):
        rows = [i for i, p in enumerate(scores.projections) if p.layer == layer]
        whole = np.concatenate([train[i] for i in rows], axis=1)
        v = np.concatenate([means[i] for i in rows])
        expected = DENSE[estimator](whole, v, rule(whole, 10.0)).astype(np.float64)
        close(scores.influence[layer], expected)
        close(scores.projection_influence[rows].sum(0), expected)
        if estimator == "exact":
            x = dense_direction(whole, v, rule(whole, 10.0)).astype(np.float64)
            pieces = np.split(x, np.cumsum([len(means[i]) for i in rows])[:-1])
            for i, own in zip(rows, pieces, strict=True):
                close(scores.projection_influence[i], train[i] @ own)


def test_a_layers_own_block_differs_from_its_matrices():
    assert not np.allclose(
        scored("datainf", block="layer").influence, scored("datainf").influence, rtol=1e-3
    )


def test_a_given_lambda_is_used_in_every_block_and_recorded():
    scores = scored("datainf", damping_value=0.01)
    for found, train, v in zip(scores.projection_influence, *gradients(), strict=True):
        close(found, dense_datainf(train, v, 0.01))
    record = scores.record
    assert (record.damping, record.damping_value) == (None, 0.01)
    assert {block.damping for block in record.blocks.values()} == {0.01}


def test_the_record_holds_lambda_and_residual_of_every_block(tmp_path):
    train, _ = gradients()
    record = scored("datainf").record
    keys = [f"layers.{p.layer}.{p.name}" for p in scored("datainf").projections]
    assert list(record.blocks) == keys
    for block, rows in zip(record.blocks.values(), train, strict=True):
        assert block.damping == pytest.approx(rule(rows, DAMPING), rel=1e-9)
        assert (block.iterations, block.residual, block.converged) == (None, None, True)
    assert (record.damping, record.tolerance, record.max_iterations) == (DAMPING, None, None)
    undamped = scored("grad_dot").record
    assert (undamped.damping, undamped.damping_value) == (None, None)
    assert {block.damping for block in undamped.blocks.values()} == {None}
    solved = scored("cg", tolerance=1e-6)
    for block in solved.record.blocks.values():
        assert block.converged
        assert block.residual <= 1e-6
        assert 0 < block.iterations <= 1000
    assert (solved.record.tolerance, solved.record.max_iterations) == (1e-6, 1000)
    solved.save(tmp_path)
    assert LayerScores.load(tmp_path) == solved


def test_blocks_that_have_not_converged_are_named(capsys):
    scores = scored("lissa", max_iterations=3)
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "lissa" in line]
    assert "21 of 21 blocks" in note
    assert "after 3 iterations" in note
    assert not any(block.converged for block in scores.record.blocks.values())


def test_silent_layers_are_named():
    model = tiny_model(dtype=torch.float64)
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    matrices = measure(model, estimator="exact").record
    assert matrices.silent_blocks == ["layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"]
    assert matrices.blocks["layers.1.mlp.up_proj"].damping == 0
    assert measure(model, estimator="exact", block="layer").record.silent_blocks == []


def test_an_estimator_of_ones_own(monkeypatch):
    monkeypatch.setattr(ESTIMATORS, "_registered", dict(ESTIMATORS._registered))
    register_estimator(
        "halved", lambda block, _options: Solution.of(block.products(block.validation / 2), None)
    )
    close(scored("halved").influence, scored("grad_dot").influence / 2)
    register_estimator("summed", lambda block, _options: Solution.of(torch.ones(1, 1), None))
    with pytest.raises(InputError, match=r"summed .*layers.0.* \(9,\)"):
        scored("summed")


def test_matrices_that_do_not_fit_are_refused_before_any_pass(monkeypatch):
    import psutil

    free = SimpleNamespace(available=3 * 8 * 9**2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(InputError, match="matrices of one block"):
        scored("exact")
    with pytest.raises(InputError, match="kept"):
        scored("cg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "datainv"}, "'datainv'"),
        ({"damping_value": 0.0}, "damping_value"),
        ({"block": "model"}, "block='model'"),
        ({"tolerance": 2.0}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        measure(tiny_model(), **options)


def test_influence_per_parameter_is_divided_by_the_size_of_its_block():
    plain, divided = scored("datainf"), scored("datainf", normalise="per_parameter")
    sizes = [len(v) for v in gradients()[1]]
    expected = plain.projection_influence / np.array(sizes)[:, None]
    np.testing.assert_allclose(divided.projection_influence, expected, rtol=1e-12)
    by_layer = np.add.reduceat(expected, np.arange(0, len(sizes), len(sizes) // LAYERS))
    np.testing.assert_allclose(divided.influence, by_layer, rtol=1e-9, atol=1e-15)
    assert divided.record.normalise == "per_parameter"
    with pytest.raises(InputError, match="normalise"):
        scored("datainf", normalise="size")
