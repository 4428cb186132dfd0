"""Every metric on mixtures of experts, against what each expert's own weight was given."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import layerif
from helpers.architecture_checks import input_sums
from helpers.mixtures import MIXTURES, experts, idle, mixture, own_part, weight_gradients
from helpers.scoring import TRAIN, VALIDATION
from helpers.texts import SENTENCES
from helpers.tiny import tiny_tokenizer
from layerif.data.chunks import cut, draw
from layerif.influence.subspaces.lora import FreshLora
from layerif.metrics.measuring import metric_scores
from layerif.metrics.pl_alpha import hill_alpha
from layerif.model.layers import find_decoder_layers

OPTIONS = {"calibration_samples": 6, "context_length": 32, "batch_tokens": 64}


def measure(model, metric, **options):
    given = {"tokenizer": tiny_tokenizer(), "calibration": SENTENCES} | OPTIONS
    return metric_scores(model, metric, **(given | options))


def texts(samples=6):
    chunks = draw(cut(tiny_tokenizer(), SENTENCES, 32), samples, 0)
    return [torch.tensor([chunk.input_ids]) for chunk in chunks]


def by_layer(model):
    layers = find_decoder_layers(model)
    return layers, [
        [row for row, p in enumerate(layers.projections) if p.layer == layer]
        for layer in range(len(layers))
    ]


def saliencies(model):
    """For each projection |W| |X|, flat; an expert of too few tokens has its siblings' inputs."""
    projections = find_decoder_layers(model).projections
    with input_sums(model, projections) as seen, torch.no_grad():
        for ids in texts():
            model(ids, use_cache=False)
    return [
        (own_part(p, p.parameter.data).abs().double() * seen(p).sqrt()).flatten().numpy()
        for p in projections
    ]


@pytest.mark.parametrize("name", MIXTURES)
def test_outliers_and_middles_of_every_expert_and_layer(name):
    model = mixture(name)
    _, rows = by_layer(model)
    every = saliencies(model)
    found = measure(model, "outlier_ratio", multiple=2.0)
    for row, own in enumerate(every):
        expected = 100 * (own > 2 * own.mean()).mean()
        assert found.projections[row].score == pytest.approx(expected, abs=100.5 / own.size)
        assert found.projections[row].numel == own.size
    together = [np.concatenate([every[row] for row in own]) for own in rows]
    for layer, own in enumerate(together):
        expected = 100 * (own > 2 * own.mean()).mean()
        assert found.scores[layer] == pytest.approx(expected, abs=100.5 / own.size)
    for statistic, middle in (("median", np.median), ("mean", np.mean)):
        scores = measure(model, "dlp", statistic=statistic)
        m = np.array([middle(own) for own in together])
        np.testing.assert_allclose(scores.scores, 1 - m / m.sum(), rtol=1e-5)
        m = np.array([middle(own) for own in every])
        np.testing.assert_allclose(
            [p.score for p in scores.projections], 1 - m / m.sum(), rtol=1e-5
        )


@pytest.mark.parametrize("name", MIXTURES)
def test_the_spectrum_of_every_expert_by_itself(name):
    model = mixture(name)
    layers, rows = by_layer(model)
    found = measure(model, "pl_alpha")
    own = []
    for p in layers.projections:
        spectrum = torch.linalg.svdvals(own_part(p, p.parameter.data)).square().flip(0)
        own.append(hill_alpha(spectrum))
    np.testing.assert_allclose([p.score for p in found.projections], own, rtol=1e-7)
    means = [np.mean([own[row] for row in each]) for each in rows]
    np.testing.assert_allclose(found.scores, means, rtol=1e-7)


@pytest.mark.parametrize("name", MIXTURES)
def test_how_far_a_layer_turns_its_hidden_state(name):
    model = mixture(name)
    turned = {}
    for index, module in enumerate(find_decoder_layers(model).modules):

        def keep(_module, args, kwargs, output, index=index):
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)
            turned.setdefault(index, []).append(1 - cosine.flatten())

        module.register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        for ids in texts():
            model(ids, use_cache=False)
    expected = [float(torch.cat(turned[index]).mean()) for index in sorted(turned)]
    np.testing.assert_allclose(
        measure(mixture(name), "block_influence").scores, expected, rtol=1e-6
    )


@pytest.mark.parametrize("name", MIXTURES)
def test_what_adapters_gain_is_autograds_product_over_their_parameters(name):
    model = mixture(name)
    layers, rows = by_layer(model)
    train, validation = (weight_gradients(model, each) for each in (TRAIN, VALIDATION))
    lora, rank = FreshLora(4, 8.0, 0), 4
    falls, sizes = [], []
    for p, one, other in zip(layers.projections, train, validation, strict=True):
        down = lora.down(p).double()
        step, slope = (2.0 * each.mean(0) @ down.T for each in (one, other))
        falls.append(float((step * slope).sum()))
        sizes.append(rank * sum(one.shape[1:]))
    found = measure(
        model,
        "adapter_gain",
        calibration=None,
        train=TRAIN,
        validation=VALIDATION,
        rank=rank,
        alpha=8.0,
    )
    expected = np.array(falls) / np.array(sizes)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        [p.score for p in found.projections], expected, rtol=1e-4, atol=1e-7 * scale
    )
    means = [sum(falls[r] for r in own) / sum(sizes[r] for r in own) for own in rows]
    np.testing.assert_allclose(found.scores, means, rtol=1e-4, atol=1e-7 * scale)
    for row in idle(layers.projections):
        assert found.projections[row].score == 0


@pytest.mark.parametrize("name", MIXTURES)
def test_marginal_is_the_derivative_at_each_expert_of_the_pruned_model(name):
    model, pruned = mixture(name), mixture(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = measure(model, "marginal", sparsity=0.5, delta=0.25)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    layers, rows = by_layer(model)
    tokenizer = tiny_tokenizer()
    layerif.prune(pruned, 0.5, tokenizer=tokenizer, calibration=SENTENCES, **OPTIONS)
    losses = [
        torch.nn.functional.cross_entropy(pruned(ids).logits[0, :-1], ids[0, 1:]) for ids in texts()
    ]
    torch.stack(losses).mean().backward()
    # The weights between a quarter and three quarters of a row, by Wanda along the pruned model.
    masks = []
    for sparsity in (0.25, 0.75):
        other = mixture(name)
        with input_sums_of_pruned(name) as norms, torch.no_grad():
            masks.append(
                [
                    ranks(own_part(p, p.parameter.data), norms[row]) < sparsity * p.in_features
                    for row, p in enumerate(find_decoder_layers(other).projections)
                ]
            )
    size = np.mean([p.numel for p in layers.projections])
    products, widths = [], []
    for row, p in enumerate(find_decoder_layers(pruned).projections):
        gradient = own_part(p, p.parameter.grad)
        dense = own_part(layers.projections[row], layers.projections[row].parameter.data)
        band = masks[1][row] & ~masks[0][row]
        products.append(float((gradient * dense * band).sum()))
        widths.append(int(band.sum()))
    scale = max(abs(v) for v in products)
    for row, (product, width) in enumerate(zip(products, widths, strict=True)):
        got = found.projections[row].score * width / size
        assert got == pytest.approx(product, rel=1e-3, abs=1e-4 * scale), layers.projections[row]
    layer_size = np.mean([sum(layers.projections[r].numel for r in own) for own in rows])
    for layer, own in enumerate(rows):
        expected = sum(products[r] for r in own) / sum(widths[r] for r in own) * layer_size
        assert found.scores[layer] == pytest.approx(expected, rel=1e-3, abs=1e-4 * scale)
    for row in idle(layers.projections):
        assert found.projections[row].score == 0


def ranks(weight, norms):
    return (weight.abs().double() * norms).argsort(dim=1, stable=True).argsort(dim=1)


class input_sums_of_pruned:
    """|X| of every projection, each layer seen behind the pruned ones below it."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        model, found = mixture(self.name), []
        for layer in range(len(find_decoder_layers(model))):
            own = find_decoder_layers(model).of(layer)
            with input_sums(model, own) as seen, torch.no_grad():
                for ids in texts():
                    model(ids, use_cache=False)
            for p in own:
                found.append(seen(p).sqrt())
                weight = own_part(p, p.parameter.data)
                weight[ranks(weight, found[-1]) < p.in_features // 2] = 0
        return found

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize("name", MIXTURES)
def test_controls_name_every_expert_and_shuffle_unlike_layers_alone(name):
    model = mixture(name)
    layers, _ = by_layer(model)
    keys = [p.key for p in layers.projections]
    for control in ("uniform", "random"):
        found = metric_scores(model, control)
        assert [p.module for p in found.projections] == keys
    random = [p.score for p in metric_scores(model, "random").projections]
    assert len({random[row] for row, *_ in experts(layers.projections)}) > 16
    alphas = metric_scores(model, "pl_alpha")
    shuffled = metric_scores(model, "shuffled", of="pl_alpha", seed=1)
    assert sorted(shuffled.scores) == sorted(alphas.scores)
    kinds = [[(p.name, p.numel) for p in layers.of(layer)] for layer in range(len(layers))]
    assert (shuffled.projections is None) == any(kind != kinds[0] for kind in kinds)
    if shuffled.projections is not None:
        total = math.fsum(p.score for p in alphas.projections)
        assert math.fsum(p.score for p in shuffled.projections) == pytest.approx(total)
