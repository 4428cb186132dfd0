"""What weights are worth at the operating point: what comes back, and the predicted change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from helpers.marginal_models import corpus, trained_model
from helpers.tiny import ARCHITECTURES, float64_tolerance, tiny_model, tiny_tokenizer
from layerif.compress.compressor import put_back
from layerif.compress.pruning.base import Masked
from layerif.compress.pruning.compressor import PruningCompressor
from layerif.compress.pruning.magnitude import MAGNITUDE
from layerif.compress.pruning.options import MethodOptions
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.wanda import wanda_mask
from layerif.data.batching import collate, pack
from layerif.data.chunks import cut, draw
from layerif.errors import NumericalError
from layerif.likelihood import token_losses
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import input_device
from layerif.search.options import SearchOptions
from layerif.search.slopes import mean_loss, slopes
from layerif.search.sparsity import SparsityKind

TEXT = corpus().text("calibration")
DELTA = 0.05


def chunks(count=8, length=32, seed=0):
    return draw(cut(tiny_tokenizer(), TEXT, length), count, seed)


def held(model, method="wanda", batch_tokens=64):
    layers = find_decoder_layers(model)
    batches = [
        collate(items, device=input_device(model)).inputs for items in pack(chunks(), batch_tokens)
    ]
    return PruningCompressor.held(model, layers, batches, MethodOptions(method=method))


def kind_of(model):
    return SparsityKind.among(find_decoder_layers(model), 0.5, SearchOptions())


def measured(model, compressor, sparsities, items, delta=DELTA, batch_tokens=64):
    """Slopes at the sparsities, and the changes they are of."""
    kind, state = kind_of(model), np.array(sparsities)
    around = replace(kind, delta=delta).around(state)
    changes = compressor.at(kind.levels(state), lambda row, unit: unit.change(*around[row]))
    return slopes(model, changes, items, batch_tokens=batch_tokens), changes


def halves(model):
    return np.full(len(find_decoder_layers(model).projections), 0.5)


def varied(model):
    """Sparsities that differ from projection to projection, some with a band cut off at an end."""
    count = len(find_decoder_layers(model).projections)
    return [(0.02, 0.31, 0.5, 0.62, 0.99)[row % 5] for row in range(count)]


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (1, 9), (9, 1)])
def test_what_goes_first_goes_at_every_higher_count(shape):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-3, 4, shape, generator=generator) / 4  # ties and zeros
    norms = torch.rand(shape[1], generator=generator, dtype=torch.float64)
    wanda = Masked(weight, lambda zeros: wanda_mask(weight, norms, zeros / weight.numel()))
    for pruner in (wanda, MAGNITUDE.prunable(None, weight, None)):
        before = torch.zeros(shape, dtype=torch.bool)
        for count in range(weight.numel() + 1):
            mask = pruner.mask(count)
            assert int(mask.sum()) == count
            assert bool(mask[before].all())
            assert torch.equal(pruner.at(count), weight.masked_fill(mask, 0))
            before = mask


def test_sparsegpts_change_is_between_two_sparsities():
    """In the lowest layer, whose inputs no pruning changes, two whole runs of `prune` tell it."""
    model = tiny_model()
    with held(model, "sparsegpt") as compressor:
        changes = measured(model, compressor, halves(model), chunks(2), delta=0.1)[1]
    pruned = []
    for sparsity in (0.4, 0.6):
        reference = tiny_model()
        prune(
            reference,
            sparsity,
            tokenizer=tiny_tokenizer(),
            calibration=TEXT,
            method="sparsegpt",
            calibration_samples=8,
            context_length=32,
            batch_tokens=64,
        )
        pruned.append([p.weight for p in find_decoder_layers(reference).of(0)])
    around = replace(kind_of(model), delta=0.1).around(halves(model))
    for row, (less, more) in enumerate(zip(*pruned, strict=True)):
        if find_decoder_layers(model).projections[row].name in (
            "self_attn.q_proj",
            "self_attn.v_proj",
        ):
            assert torch.equal(changes[row](), less - more)
        assert around[row] == tuple(int((weight == 0).sum()) for weight in (more, less))


def test_a_change_holds_the_weights_between_two_sparsities_and_stops_at_the_ends():
    weight = torch.randn(20, 10, generator=torch.Generator().manual_seed(2))
    order = Masked(weight, lambda zeros: wanda_mask(weight, torch.ones(10), zeros / 200))
    assert torch.equal(order.change(100, 60)(), weight * (order.mask(100) & ~order.mask(60)))
    assert torch.equal(order.change(100, 60)(), order.at(60) - order.at(100))
    assert not order.change(60, 60)().any()
    kind = SparsityKind(np.arange(3), np.array([200, 200, 200]), 0.5, 0.0, 1.0, delta=0.1)
    assert kind.around(np.array([0.4, 0.02, 0.99])) == [(100, 60), (24, 0), (200, 178)]


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_slopes_are_the_inner_products_of_autograds_gradients(architecture, method):
    model = tiny_model(architecture, torch.float64)
    tolerance = float64_tolerance(architecture)
    projections = find_decoder_layers(model).projections
    sparsities, items = varied(model), chunks(5, 24, seed=4)
    with held(model, method) as compressor:
        found, changes = measured(model, compressor, sparsities, items, batch_tokens=10_000)
        # The oracle: all texts as one batch, the gradients of the weights themselves.
        model.requires_grad_(True)
        model.zero_grad()
        batch = collate(items, device=torch.device("cpu"))
        # Divided afterwards: norms are in float32 whatever the dtype, so a factor shows there.
        loss = token_losses(model, batch).view(len(items), -1).mean(1).sum()
        loss.backward()
        for row, p in enumerate(projections):
            gradient = p.module.weight.grad / len(items)
            if type(p.module).__name__ == "Conv1D":
                gradient = gradient.T
            change = changes[row]()
            expected = (gradient * change).sum().item()
            scale = gradient.norm().item() * change.norm().item()
            assert abs(found[row] - expected) <= tolerance * scale + 1e-15


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_the_model_is_pruned_as_prune_does_and_given_back_to_the_bit(architecture, method):
    model, reference = tiny_model(architecture), tiny_model(architecture)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    wanted = [p.requires_grad for p in model.parameters()]
    prune(
        reference,
        0.5,
        tokenizer=tiny_tokenizer(),
        calibration=TEXT,
        method=method,
        calibration_samples=8,
        context_length=32,
        batch_tokens=64,
    )
    with held(model, method) as compressor:
        compressor.at(kind_of(model).levels(halves(model) - 0.2))
        measured(model, compressor, halves(model), chunks(4))
        for p, q in zip(
            find_decoder_layers(model).projections,
            find_decoder_layers(reference).projections,
            strict=True,
        ):
            assert torch.equal(p.weight, q.weight), p.key
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_is_given_back_after_an_error_too():
    model = tiny_model()
    before = [p.clone() for p in model.parameters()]
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.inf
    with (
        pytest.raises(NumericalError, match=r"layers\.0\.mlp\.down_proj"),
        held(model) as compressor,
    ):
        compressor.at(kind_of(model).levels(halves(model)))
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = before[_place(model)][0, 0]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def _place(model):
    wanted = model.model.layers[0].mlp.up_proj.weight
    return next(i for i, p in enumerate(model.parameters()) if p is wanted)


def test_how_texts_are_batched_changes_nothing():
    model = tiny_model(dtype=torch.float64)
    found = []
    with held(model) as compressor:
        for batch_tokens in (1, 10_000):
            measure = measured(model, compressor, varied(model), chunks(6), DELTA, batch_tokens)
            found.append(measure[0])
    np.testing.assert_allclose(*found, rtol=1e-9, atol=1e-14)


def test_half_precision_is_summed_in_full():
    """A bfloat16 model's products are those of the same numbers in float32, but for its passes."""
    model = trained_model()
    low = trained_model(torch.bfloat16)
    model.load_state_dict({k: v.float() for k, v in low.state_dict().items()})
    found = []
    for each in (model, low):
        with held(each) as compressor:
            found.append(measured(each, compressor, halves(each), chunks(16, seed=2))[0])
    assert pearsonr(*found)[0] > 0.95


@pytest.mark.parametrize(
    ("method", "delta", "sparsity"), [("wanda", 0.01, 0.4), ("sparsegpt", 0.02, 0.5)]
)
def test_the_predicted_change_is_that_of_a_real_small_change_of_density(method, delta, sparsity):
    """Projection by projection, the next weights put back or taken, the loss measured again.

    By SparseGPT each is refitted; the weights that come back by themselves would not do there.
    """
    model = trained_model(torch.float64)
    items, kind = chunks(24, seed=2), kind_of(model)
    state = np.full(len(kind.sizes), sparsity)
    around, levels = replace(kind, delta=delta).around(state), kind.levels(state)
    with held(model, method) as compressor:
        units = compressor.at(levels, lambda _row, unit: unit)
        changes = [unit.change(*edge) for unit, edge in zip(units, around, strict=True)]
        products = slopes(model, changes, items, batch_tokens=10_000)
        predicted, real = kind.worth(products, around), []
        for row, (more, fewer) in enumerate(around):
            losses = []
            for level in (more, fewer):
                compressor.set(row, units[row].at(level))
                losses.append(mean_loss(model, items, batch_tokens=10_000))
            compressor.set(row, units[row].at(levels[row]))
            # Per unit of density given, as many weights as a projection has on average.
            real.append((losses[1] - losses[0]) / (more - fewer) * kind.sizes.mean())
    assert pearsonr(predicted, real)[0] > 0.9
    assert np.mean(np.sign(predicted) == np.sign(real)) > 0.8


def test_weights_are_put_back_whatever_happened():
    model = tiny_model("gpt2")  # whose weights are views
    projections = find_decoder_layers(model).of(1)
    before = [p.clone() for p in model.parameters()]

    def broken():
        with put_back(projections) as originals:
            for projection, original in zip(projections, originals, strict=True):
                assert torch.equal(projection.weight, original)
                projection.weight.zero_()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
