"""What a parameter of an adapter gains in each layer, against autograd, steps taken, and scores."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

import layerif
from helpers.scoring import RANK, TRAIN, VALIDATION, autograd_gradients, measure
from helpers.texts import SENTENCES
from helpers.tiny import ARCHITECTURES, LAYERS, float64_tolerance, tiny_model, tiny_tokenizer
from layerif.artifacts import MetricScores, Plan
from layerif.data.chunks import cut, draw
from layerif.errors import InputError, NumericalError
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import find_decoder_layers

SEED, ALPHA = 3, 8.0  # those of test_influence
SAMPLES = {"train": TRAIN, "validation": VALIDATION}


def gain(model, **options):
    options = {"rank": RANK, "alpha": ALPHA, "seed": SEED} | options
    return layerif.metric_scores(model, "adapter_gain", tokenizer=tiny_tokenizer(), **options)


def sizes(model, rank=RANK):
    """Parameters of each projection's LoRA, and its layer."""
    projections = find_decoder_layers(model).projections
    return (
        np.array([rank * (p.in_features + p.out_features) for p in projections]),
        np.array([p.layer for p in projections]),
    )


def values(scores):
    return np.array([p.score for p in scores.projections])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_grad_dot_added_up_over_samples_by_the_parameters(architecture):
    model = tiny_model(architecture, dtype=torch.float64)
    found = gain(model, **SAMPLES)
    influence = measure(model, estimator="grad_dot")
    parameters, owners = sizes(model)
    tolerance = max(1e-9, float64_tolerance(architecture))
    expected = influence.aggregate("all") / len(TRAIN) / np.bincount(owners, weights=parameters)
    np.testing.assert_allclose(found.scores, expected, rtol=tolerance, atol=1e-18)
    each = influence.aggregate_projections("all") / len(TRAIN) / parameters
    np.testing.assert_allclose(values(found), each, rtol=tolerance, atol=1e-18)
    assert len({*found.scores}) == LAYERS


def test_it_is_the_product_of_the_mean_gradients_by_autograd():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    train, validation = (
        [block.mean(0) for block in autograd_gradients(model, tokenizer, samples)]
        for samples in (TRAIN, VALIDATION)
    )
    expected = [a @ b for a, b in zip(train, validation, strict=True)] / sizes(model)[0]
    np.testing.assert_allclose(values(gain(model, **SAMPLES)), expected, rtol=1e-9)


def test_a_small_step_on_the_training_samples_lowers_the_validation_loss_by_so_much():
    """B moved against its gradient in one layer alone: the loss falls by eta params gain."""
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    found = gain(model, **SAMPLES).scores
    parameters, owners = sizes(model)
    steps = [block.mean(0) for block in autograd_gradients(model, tokenizer, TRAIN)]
    lora = FreshLora(RANK, ALPHA, SEED)

    def loss(layer, eta):
        moved = copy.deepcopy(model)
        for projection, step in zip(find_decoder_layers(moved).projections, steps, strict=True):
            if projection.layer == layer:
                up = torch.from_numpy(step).reshape(projection.out_features, RANK)
                down = lora.down(projection).double()
                projection.weight.sub_(eta * ALPHA / RANK * up @ down)
        return measure(moved).record.validation_loss

    for layer in range(LAYERS):
        # A step there and one back, so that what is of second order goes.
        fall = (loss(layer, -1e-3) - loss(layer, 1e-3)) / 2e-3
        assert fall == pytest.approx(parameters[owners == layer].sum() * found[layer], rel=2e-3)


def test_over_draws_of_a_it_is_the_product_of_the_weights_own_gradients():
    """Many seeds of the largest rank draw A often enough to meet its mean."""
    model, tokenizer, rank, seeds = tiny_model(dtype=torch.float64), tiny_tokenizer(), 16, 100
    full = []
    for samples in (TRAIN[:3], VALIDATION[:2]):
        own = copy.deepcopy(model)
        for sample in samples:
            ids = torch.tensor([tokenizer(sample.prompt + sample.completion)["input_ids"]])
            start = len(tokenizer(sample.prompt)["input_ids"])
            logits = own(input_ids=ids).logits[0, start - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, start:])
            (loss / len(samples)).backward()
        full.append([p.module.weight.grad for p in find_decoder_layers(own).projections])
    products = np.array([float((a * b).sum()) for a, b in zip(*full, strict=True)])
    inputs = np.array([p.in_features for p in find_decoder_layers(model).projections])
    norms = np.array([float(a.norm() * b.norm()) for a, b in zip(*full, strict=True)])
    samples = {"train": TRAIN[:3], "validation": VALIDATION[:2]}
    draws = [
        values(gain(model, rank=rank, alpha=float(rank), seed=seed, **samples))
        for seed in range(seeds)
    ]
    found = np.mean(draws, axis=0)
    unit = rank / (3 * inputs) / sizes(model, rank)[0]
    # Of the draw of A, five standard deviations at most, which most of the products exceed by far.
    noise = 5 * np.sqrt(2 / (rank * seeds)) * norms
    assert (np.abs(found / unit - products) <= noise).all()
    assert np.median(np.abs(products) / noise) > 2


def test_every_other_chunk_of_text_is_judged_by():
    model = tiny_model(dtype=torch.float64)
    tokenizer = tiny_tokenizer()
    found = gain(
        model, calibration=SENTENCES, calibration_samples=5, context_length=32, batch_tokens=64
    )
    chunks = sorted(draw(cut(tokenizer, SENTENCES, 32), 5, SEED), key=lambda chunk: chunk.index)
    lora, means = FreshLora(RANK, ALPHA, SEED), []
    for half in (chunks[::2], chunks[1::2]):
        own = copy.deepcopy(model)
        for chunk in half:
            ids = torch.tensor([chunk.input_ids])
            logits = own(input_ids=ids).logits[0, :-1]
            torch.nn.functional.cross_entropy(logits, ids[0, 1:]).backward()
        means.append(
            [
                ALPHA / RANK * p.module.weight.grad @ lora.down(p).double().T / len(half)
                for p in find_decoder_layers(own).projections
            ]
        )
    expected = [float((a * b).sum()) for a, b in zip(*means, strict=True)] / sizes(model)[0]
    np.testing.assert_allclose(values(found), expected, rtol=1e-9)
    assert found.calibration["samples"] == 5
    assert found.options == {"rank": RANK, "alpha": ALPHA, "seed": SEED}


def test_what_it_cannot_be_asked_is_refused():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.raises(InputError, match="metric dlp"):
        layerif.metric_scores(model, "dlp", tokenizer=tokenizer, **SAMPLES)
    with pytest.raises(InputError, match="validation samples"):
        gain(model, train=TRAIN)
    with pytest.raises(InputError, match="give at least 2 chunks"):
        gain(model, calibration=SENTENCES, calibration_samples=1, context_length=32)
    with pytest.raises(InputError, match="rank=0"):
        gain(model, **SAMPLES, rank=0)
    with pytest.raises(InputError, match="tokenizer"):
        gain(model)
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="training sample"):
        gain(model, **SAMPLES)


def test_the_command_asks_it_of_a_task_and_plans_take_it(layerif, model, tmp_path):
    out = tmp_path / "gain.json"
    command = ["metric", "adapter_gain", "--model", model, "--out", out, "--task", "agreement"]
    command += ["--train-samples", 6, "--validation-samples", 5, "--rank", 2]
    status, printed, err = layerif(*command)
    assert status == 0, err
    assert "adapter_gain per decoder layer" in printed
    scores = MetricScores.load(out)
    assert (scores.calibration["task"]["name"], scores.options["rank"]) == ("agreement", 2)
    assert (scores.calibration["train_samples"], scores.calibration["validation_samples"]) == (6, 5)
    assert len(scores.projections) == len(find_decoder_layers(tiny_model()).projections)
    status, _, err = layerif("run", out.with_suffix(".recipe.yaml"))
    assert status == 0, err
    assert "nothing is done again" in err
    status, _, err = layerif(*command[:-1], 3)
    assert status == 2
    assert "rank was" in err
    plan = tmp_path / "experts.json"
    assert layerif("allocate", "experts", out, "--total", 12, "--out", plan)[0] == 0
    experts = Plan.load(plan)
    assert sum(experts.allocation) == 12
    assert int(np.argmax(experts.allocation)) == int(np.argmax(scores.scores))
    status, _, err = layerif(
        *["metric", "dlp", "--model", model, "--out", tmp_path / "dlp.json", "--task", "agreement"]
    )
    assert status == 2
    assert "metric dlp" in err
    assert json.loads(out.read_text())["metric"] == "adapter_gain"
