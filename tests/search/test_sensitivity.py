"""What weights are worth at the operating point: order, bands, and the predicted change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from helpers.marginal_models import corpus, trained_model
from helpers.tiny import ARCHITECTURES, float64_tolerance, tiny_model, tiny_tokenizer
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.wanda import wanda_mask
from layerif.data.batching import collate, pack
from layerif.data.chunks import cut, draw
from layerif.errors import NumericalError
from layerif.likelihood import token_losses
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import input_device
from layerif.search.operating_point import OperatingPoint
from layerif.search.order import RemovalOrder
from layerif.search.sensitivity import mean_loss, sensitivities

TEXT = corpus().text("calibration")
DELTA = 0.05


def chunks(count=8, length=32, seed=0):
    return draw(cut(tiny_tokenizer(), TEXT, length), count, seed)


def held(model, method="wanda", batch_tokens=64):
    layers = find_decoder_layers(model)
    batches = [
        collate(items, device=input_device(model)).inputs for items in pack(chunks(), batch_tokens)
    ]
    return OperatingPoint.held(model, layers, batches, method)


def measured(point, sparsities, items, delta=DELTA, batch_tokens=64):
    """Sensitivities at the sparsities, and the bands they are of."""
    bands = {}
    point.prune(
        sparsities, lambda row, order: bands.update({row: order.band(sparsities[row], delta)})
    )
    bands = [bands[row] for row in range(len(bands))]
    return sensitivities(point, bands, items, batch_tokens=batch_tokens), bands


def varied(model):
    """Sparsities that differ from projection to projection, some with a band cut off at an end."""
    count = len(find_decoder_layers(model).projections)
    return [(0.02, 0.31, 0.5, 0.62, 0.99)[row % 5] for row in range(count)]


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (1, 9), (9, 1)])
def test_the_order_of_wanda_gives_its_masks_at_every_count(shape):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-3, 4, shape, generator=generator) / 4  # ties and zeros
    norms = torch.rand(shape[1], generator=generator, dtype=torch.float64)
    order = RemovalOrder.of(weight, norms, "wanda")
    before = torch.zeros(shape, dtype=torch.bool)
    for count in range(weight.numel() + 1):
        mask = order.mask(count)
        assert torch.equal(mask, wanda_mask(weight, norms, count / weight.numel()))
        assert bool(mask[before].all()), "what goes first goes at every higher count"
        before = mask


def test_magnitude_takes_the_smallest_weights_of_the_whole_projection():
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(2)).T
    order = RemovalOrder.of(weight, None, "magnitude")
    for count in (0, 1, 17, 60):
        mask = order.mask(count)
        assert int(mask.sum()) == count
        if 0 < count < 60:
            assert weight[mask].abs().max() < weight[~mask].abs().min()


def test_sparsegpts_band_is_what_it_changes_between_two_sparsities():
    """In the lowest layer, whose inputs no pruning changes, two whole runs of `prune` tell it."""
    model, bands = tiny_model(), {}
    with held(model, "sparsegpt") as point:
        keep = lambda row, refitting: bands.update({row: refitting.band(0.5, 0.1)})  # noqa: E731
        point.prune([0.5] * len(point.sizes), keep)
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
    for row, (less, more) in enumerate(zip(*pruned, strict=True)):
        if find_decoder_layers(model).projections[row].name in (
            "self_attn.q_proj",
            "self_attn.v_proj",
        ):
            assert torch.equal(bands[row].change(torch.empty(0)), less - more)
        zeros = [int((weight == 0).sum()) for weight in (less, more)]
        assert bands[row].width == zeros[1] - zeros[0]


def test_a_band_holds_the_weights_between_two_sparsities_and_stops_at_the_ends():
    weight = torch.randn(20, 10, generator=torch.Generator().manual_seed(2))
    order = RemovalOrder.of(weight, torch.ones(10), "wanda")
    band = order.band(0.4, 0.1)
    assert torch.equal(band.marked, order.mask(100) & ~order.mask(60))
    assert band.width == int(band.marked.sum()) == 40
    assert int((band.marked & order.mask(80)).sum()) == 20, "half of them are pruned now"
    assert torch.equal(band.change(weight), weight * band.marked)
    for sparsity, width in ((0.02, 24), (0.99, 22)):
        ends = order.band(sparsity, 0.1)
        assert ends.width == int(ends.marked.sum()) == width


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sensitivities_are_the_inner_products_of_autograds_gradients(architecture, method):
    model = tiny_model(architecture, torch.float64)
    tolerance = float64_tolerance(architecture)
    projections = find_decoder_layers(model).projections
    originals = [p.weight.clone() for p in projections]
    sparsities, items = varied(model), chunks(5, 24, seed=4)
    with held(model, method) as point:
        found, bands = measured(point, sparsities, items, batch_tokens=10_000)
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
            change = bands[row].change(originals[row])
            expected = (gradient * change).sum().item()
            scale = gradient.norm().item() * change.norm().item()
            assert abs(found.products[row] - expected) <= tolerance * scale + 1e-15
            assert found.widths[row] == bands[row].width


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
    with held(model, method) as point:
        point.prune([0.3] * len(point.sizes))
        measured(point, [0.5] * len(point.sizes), chunks(4))
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
    with pytest.raises(NumericalError, match=r"layers\.0\.mlp\.down_proj"), held(model) as point:
        point.prune([0.5] * len(point.sizes))
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = before[_place(model)][0, 0]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def _place(model):
    wanted = model.model.layers[0].mlp.up_proj.weight
    return next(i for i, p in enumerate(model.parameters()) if p is wanted)


def test_how_texts_are_batched_changes_nothing():
    model = tiny_model(dtype=torch.float64)
    with held(model) as point:
        one, _ = measured(point, varied(model), chunks(6), batch_tokens=1)
        all_at_once, _ = measured(point, varied(model), chunks(6), batch_tokens=10_000)
    np.testing.assert_allclose(one.products, all_at_once.products, rtol=1e-9, atol=1e-14)


def test_half_precision_is_summed_in_full():
    """A bfloat16 model's products are those of the same numbers in float32, but for its passes."""
    model = trained_model()
    low = trained_model(torch.bfloat16)
    model.load_state_dict({k: v.float() for k, v in low.state_dict().items()})
    found = []
    for each in (model, low):
        with held(each) as point:
            found.append(measured(point, [0.5] * len(point.sizes), chunks(16, seed=2))[0].products)
    assert pearsonr(*found)[0] > 0.95


def test_the_predicted_change_is_that_of_a_real_small_change_of_density():
    """Projection by projection, the next weights put back or taken, the loss measured again."""
    model = trained_model(torch.float64)
    items, delta, sparsity = chunks(24, seed=2), 0.01, 0.4
    with held(model) as point:
        orders = {}
        count = len(point.sizes)
        point.prune([sparsity] * count, lambda row, order: orders.update({row: order}))
        bands = [orders[row].band(sparsity, delta) for row in range(count)]
        found = sensitivities(point, bands, items, batch_tokens=10_000)
        units = np.arange(count)
        predicted = found.per_density(units, float(np.mean(point.sizes)))
        real = []
        for row, size in enumerate(point.sizes):
            losses = []
            for s in (sparsity - delta, sparsity + delta):
                point.take_out(row, orders[row], round(s * size))
                losses.append(mean_loss(point, items, batch_tokens=10_000))
            width = (round((sparsity + delta) * size) - round((sparsity - delta) * size)) / size
            # Per unit of density given, so many of the mean projection's weights.
            real.append((losses[0] - losses[1]) / width * np.mean(point.sizes) / size)
            point.take_out(row, orders[row], round(sparsity * size))
    assert pearsonr(predicted, real)[0] > 0.9
    assert np.mean(np.sign(predicted) == np.sign(real)) > 0.8


def test_so_it_is_by_sparsegpt_where_other_weights_change_with_them():
    """The same, each projection refitted; the weights that come back by themselves would not do."""
    model = trained_model(torch.float64)
    items, delta, sparsity = chunks(24, seed=2), 0.02, 0.5
    with held(model, "sparsegpt") as point:
        seen, count = {}, len(point.sizes)

        def see(row, refitting):
            ends = [round((sparsity + sign * delta) * point.sizes[row]) for sign in (-1, 1)]
            seen[row] = [refitting.band(sparsity, delta), *(refitting.at(end) for end in ends)]

        point.prune([sparsity] * count, see)
        bands = [seen[row][0] for row in range(count)]
        found = sensitivities(point, bands, items, batch_tokens=10_000)
        predicted = found.per_density(np.arange(count), float(np.mean(point.sizes)))
        real = []
        for row, projection in enumerate(point.layers.projections):
            here, losses = projection.weight.clone(), []
            for weight in seen[row][1:]:
                projection.weight.copy_(weight)
                losses.append(mean_loss(point, items, batch_tokens=10_000))
            projection.weight.copy_(here)
            real.append((losses[0] - losses[1]) / bands[row].width * np.mean(point.sizes))
    assert pearsonr(predicted, real)[0] > 0.9
    assert np.mean(np.sign(predicted) == np.sign(real)) > 0.8
