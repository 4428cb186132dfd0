"""Influence against an oracle: a loop of batch-1 autograd and DataInf's published double loop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.scoring import (
    ALPHA,
    RANK,
    SEED,
    TRAIN,
    VALIDATION,
    autograd_gradients,
    measure,
    published_datainf,
)
from helpers.tiny import (
    ARCHITECTURES,
    float64_tolerance,
    tiny_model,
    tiny_tokenizer,
    use_mlps_twice,
)
from layerif.artifacts import LayerScores
from layerif.data.base import Example
from layerif.data.batching import collate
from layerif.data.tokenizing import encode
from layerif.errors import InputError, NumericalError
from layerif.influence.gradients import PerSampleGradients, frozen
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import find_decoder_layers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_oracle_in_float64(architecture):
    check_against_the_oracle(
        tiny_model(architecture, torch.float64), float64_tolerance(architecture)
    )


def test_a_projection_used_twice_has_the_gradients_of_both_uses():
    """Without the sum, each block would have the gradient of the use that autograd reaches last."""
    model = tiny_model(dtype=torch.float64)
    before = measure(model)
    use_mlps_twice(model)
    assert np.abs(measure(model).influence - before.influence).max() > 0.01
    check_against_the_oracle(model, 1e-9)


def check_against_the_oracle(model, tolerance):
    tokenizer = tiny_tokenizer()
    scores = measure(model, tokenizer)
    train = autograd_gradients(model, tokenizer, TRAIN)
    validation = autograd_gradients(model, tokenizer, VALIDATION)
    oracle = np.stack([published_datainf(g, v) for g, v in zip(train, validation, strict=True)])
    layers = np.zeros_like(scores.influence)
    for row, projection in zip(oracle, scores.projections, strict=True):
        layers[projection.layer] += row
    scale = np.abs(oracle).max()
    assert np.abs(scores.projection_influence - oracle).max() <= tolerance * scale
    assert np.abs(scores.influence - layers).max() <= tolerance * np.abs(layers).max()


@pytest.mark.parametrize(
    "options",
    [
        {"batch_tokens": 1},
        {"batch_tokens": 100_000},
        {"padding_side": "left"},
    ],
    ids=["one at a time", "all at once", "left padding"],
)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "gpt2", "opt"])
def test_batches_and_padding_change_nothing(architecture, options):
    model = tiny_model(architecture, torch.float64)
    reference = measure(model, batch_tokens=150)
    other = measure(model, **options)
    scale = np.abs(reference.projection_influence).max()
    gap = np.abs(reference.projection_influence - other.projection_influence).max()
    assert gap <= 1e-10 * scale
    np.testing.assert_allclose(other.train_losses, reference.train_losses, rtol=1e-10)


def test_the_order_of_samples_only_permutes_the_columns():
    model = tiny_model(dtype=torch.float64)
    order = np.random.default_rng(0).permutation(len(TRAIN))
    reference = measure(model)
    shuffled = measure(model, train=[TRAIN[i] for i in order], validation=VALIDATION[::-1])
    scale = np.abs(reference.influence).max()
    assert np.abs(reference.influence[:, order] - shuffled.influence).max() <= 1e-10 * scale


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_are_the_same_under_gradient_checkpointing(reentrant):
    """Layers then run twice; without care the hooks would count both runs, or miss them."""
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    items, _ = encode(tokenizer, [(e.prompt, e.completion) for e in TRAIN], 64)
    batch = collate(items, device=torch.device("cpu"))
    projections = find_decoder_layers(model).projections
    matrices = FreshLora().matrices(projections)
    with frozen(model), PerSampleGradients(model, projections, matrices) as per_sample:
        _, reference = per_sample(batch)
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.train()  # only then does transformers recompute; this model has no dropout
        _, recomputed = per_sample(batch)
    for expected, found in zip(reference, recomputed, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_bfloat16_is_near_float32():
    reference = measure(tiny_model())
    rounded = measure(tiny_model(dtype=torch.bfloat16))
    correlation = np.corrcoef(reference.influence.ravel(), rounded.influence.ravel())[0, 1]
    assert correlation > 0.99


def test_positive_influence_means_that_the_sample_lowers_the_validation_loss():
    """A real step on each sample alone: predicted and true change of the loss agree in sign.

    With the sign flipped the correlation would be near -1.
    """
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    train = autograd_gradients(model, tokenizer, TRAIN)
    lora = FreshLora(RANK, ALPHA, SEED)
    projections = find_decoder_layers(model).projections
    before = measure(model).record.validation_loss
    decreases, predicted = [], measure(model, damping=1e6)
    for sample in range(len(TRAIN)):
        stepped = tiny_model(dtype=torch.float64)
        for projection, gradients in zip(
            find_decoder_layers(stepped).projections, train, strict=True
        ):
            up = torch.from_numpy(gradients[sample]).view(projection.out_features, RANK)
            down = lora.down(projection).double()
            projection.weight.sub_(1e-4 * lora.alpha / lora.rank * up @ down)
        decreases.append(before - measure(stepped).record.validation_loss)
    # At a huge damping H is a multiple of the identity in each block, as a plain step assumes; the
    # blocks' own lambdas are taken out again to add them up.
    total = np.zeros(len(TRAIN))
    for row, gradients in zip(predicted.projection_influence, train, strict=True):
        total += row * 1e6 * np.mean((gradients**2).sum(1)) / gradients.shape[1]
    assert len(projections) == len(train)
    assert np.corrcoef(total, decreases)[0, 1] > 0.99


def test_the_model_is_left_as_it_was():
    model = tiny_model()
    model.train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    measure(model)
    assert model.training
    assert not model.model.layers[0].mlp.up_proj.weight.requires_grad
    assert model.model.layers[1].mlp.up_proj.weight.requires_grad
    assert all(p.grad is None for p in model.parameters()), "no base weight has a gradient"
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_dropout_is_off():
    model = tiny_model("opt", torch.float64)
    reference = measure(model)
    model.train()
    np.testing.assert_array_equal(measure(model).influence, reference.influence)


def test_the_lora_depends_on_seed_and_name_alone():
    projections = find_decoder_layers(tiny_model()).projections
    lora = FreshLora(4, 8.0, seed=1)
    torch.manual_seed(123)
    first = lora.down(projections[5])
    torch.manual_seed(321)
    assert torch.equal(lora.down(projections[5]), first)
    assert not torch.equal(FreshLora(4, 8.0, seed=2).down(projections[5]), first)
    assert first.abs().max() <= projections[5].in_features ** -0.5


def test_scores_are_saved_and_loaded_equal(tmp_path):
    scores = measure(tiny_model(), task={"name": "made up", "rows": 9})
    scores.save(tmp_path)
    assert LayerScores.load(tmp_path) == scores


def test_samples_that_do_not_fit_are_listed():
    train = [*TRAIN, Example("p", " far too long" * 10)]
    scores = measure(tiny_model(), train=train, max_length=60)
    assert scores.record.dropped_train == [len(TRAIN)]
    assert scores.influence.shape[1] == scores.record.train_samples == len(TRAIN)
    with pytest.raises(InputError, match="9 training samples"):
        measure(tiny_model(), max_length=3)
    with pytest.raises(InputError, match="validation samples"):
        measure(tiny_model(), validation=[])


def test_a_loss_that_is_not_finite_stops_at_the_sample():
    model = tiny_model()
    # Only sample 2 of the validation set has this byte.
    token = tiny_tokenizer()("~")["input_ids"][0]
    model.get_input_embeddings().weight.data[token] = torch.nan
    broken = [*VALIDATION[:2], Example("a ~", " b"), *VALIDATION[2:]]
    with pytest.raises(NumericalError, match="validation sample 2 "):
        measure(model, validation=broken)


def test_blocks_without_gradient_are_named_and_count_nothing():
    model = tiny_model(dtype=torch.float64)
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    scores = measure(model)
    # With down_proj at zero nothing reaches the projections below it.
    silent = {"layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"}
    assert set(scores.record.silent_blocks) == silent
    rows = [f"layers.{p.layer}.{p.name}" in silent for p in scores.projections]
    assert not scores.projection_influence[rows].any()


def test_a_projection_that_takes_no_part_is_named_and_counts_as_nothing(capsys):
    model = tiny_model()
    model.model.layers[1].spare = torch.nn.Linear(4, 4)
    scores = measure(model)
    row = next(i for i, p in enumerate(scores.projections) if p.name == "spare")
    assert not scores.projection_influence[row].any()
    assert capsys.readouterr().err.count("layers.1.spare") == 1


def test_memory_is_checked_before_any_pass(monkeypatch):
    import psutil

    little = SimpleNamespace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    with pytest.raises(InputError, match="run folder"):
        measure(tiny_model(), keep="memory")
    with pytest.raises(InputError, match="datainf"):
        measure(tiny_model(), estimator="cg")


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": -1.0}, {"damping": 0.0}])
def test_parameters_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        measure(tiny_model(), **options)
