"""What dropping a layer or sublayer would do to the loss: held against gates and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.architectures import tiny_architecture
from helpers.tiny import tiny_model
from layerif.compress.depth.skipping import Skipping
from layerif.compress.depth.streams import parts_of
from layerif.compress.depth.units import find_units
from layerif.data.batching import Encoded
from layerif.errors import InputError, NumericalError
from layerif.model.layers import find_decoder_layers
from layerif.search.depth_question import ask, ask_layers

LENGTHS, START = (19, 13), 2


def texts():
    generator = torch.Generator().manual_seed(5)
    return [
        Encoded(index, torch.randint(3, 260, (length,), generator=generator).tolist(), START)
        for index, length in enumerate(LENGTHS)
    ]


def losses(model, item):
    """Of each scored token, in float64."""
    ids = torch.tensor([item.input_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, START - 1 : -1]
    return functional.cross_entropy(logits.double(), ids[0, START:], reduction="none")


class Gate:
    """Scales what a module adds to its input, at one place for each token and number."""

    def __init__(self, module, adds):
        self.module, self.adds = module, adds

    def __enter__(self):
        def gated(_module, args, kwargs, output):
            first = output[0] if isinstance(output, tuple) else output
            hidden = args[0] if args else kwargs["hidden_states"]
            added = first if self.adds else first - hidden
            self.gate = torch.ones_like(added, requires_grad=True)
            self.influence = (
                1 - functional.cosine_similarity(hidden.double(), first.double(), dim=-1).detach()
            )
            new = added * self.gate + (0 if self.adds else hidden)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        self.hook = self.module.register_forward_hook(gated, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.hook.remove()


def by_gates(model, module, *, adds):
    """Slope, diagonal and token terms by autograd at explicit gates, and block influence."""
    slope = diagonal = token = turned = 0.0
    scored = sum(length - START for length in LENGTHS)
    for item in texts():
        with Gate(module, adds) as gate:
            (found,) = torch.autograd.grad(losses(model, item).sum(), gate.gate)
        found = found.double()
        slope -= float(found.sum()) / scored
        diagonal += float(found.square().sum()) / 2 / scored
        token += float(found.sum(-1).square().sum()) / 2 / scored
        turned += float(gate.influence.sum()) / sum(LENGTHS)
    return slope, diagonal, token, turned


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "mamba2", "rwkv"])
def test_layers_are_what_explicit_gates_say(name):
    model = tiny_architecture(name, torch.float64)
    layers = find_decoder_layers(model)
    found = ask_layers(model, layers, texts(), batch_tokens=64)
    expected = [by_gates(model, layer, adds=False) for layer in layers.modules]
    for row, values in enumerate((found.slope, found.diagonal, found.token, found.influence)):
        # Mamba and RWKV compute some of it in float32.
        np.testing.assert_allclose(values, [e[row] for e in expected], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(found.cost, found.slope + found.diagonal)


@pytest.mark.parametrize("name", ["llama", "phi", "falcon_h1"])
def test_sublayers_are_what_explicit_gates_say(name):
    """One after another (Llama), side by side (Phi), or both, with multipliers (Falcon H1)."""
    model = tiny_architecture(name, torch.float64)
    layers = find_decoder_layers(model)
    units = find_units(layers, "sublayer")
    parts = parts_of(Skipping(model, layers, units), units)
    found = ask(model, layers, parts, texts(), batch_tokens=64)
    order = [unit for layer in parts for part in layer for unit in part.units]
    assert {unit.key for unit in order} == {unit.key for unit in units}
    for row, unit in enumerate(order):
        slope, diagonal, token, _ = by_gates(model, unit.module, adds=True)
        np.testing.assert_allclose(
            [found.slope[row], found.diagonal[row], found.token[row]],
            [slope, diagonal, token],
            rtol=1e-5,
        )


def test_a_sublayer_behind_a_norm_adds_what_the_norm_makes_of_it():
    """Gemma 3 scales what attention returns: the gate is at what is added to the stream."""
    model = tiny_architecture("gemma3_text", torch.float64)
    layers = find_decoder_layers(model)
    units = find_units(layers, "sublayer")
    parts = parts_of(Skipping(model, layers, units), units)
    found = ask(model, layers, parts, texts(), batch_tokens=64)
    first = by_gates(model, layers.modules[0].post_attention_layernorm, adds=True)
    np.testing.assert_allclose([found.slope[0], found.diagonal[0]], first[:2], rtol=1e-5)


def test_batches_and_padding_make_no_difference():
    model = tiny_model()
    layers = find_decoder_layers(model)
    one, other = (ask_layers(model, layers, texts(), batch_tokens=n) for n in (1, 64))
    for name in ("slope", "diagonal", "token", "influence"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4)


def test_the_model_is_asked_without_what_is_dropped():
    model = tiny_model()
    layers = find_decoder_layers(model)
    units = find_units(layers, "layer")
    skipping = Skipping(model, layers, units)
    before = dict(vars(model.model.layers[1]))
    with skipping.without(units[1:2]):
        found = ask(
            model,
            layers,
            parts_of(skipping, units),
            texts(),
            batch_tokens=64,
            dropped=frozenset({"layers.1"}),
        )
        expected = by_gates(model, layers.modules[0], adds=False)
    assert np.isnan(found.cost[1])
    assert found.slope[0] == pytest.approx(expected[0], rel=1e-4)
    assert vars(model.model.layers[1]) == before


def test_a_loss_that_is_not_finite_is_refused():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[7] = torch.inf
    with pytest.raises(NumericalError, match="finite"):
        ask_layers(model, find_decoder_layers(model), texts(), batch_tokens=64)


@pytest.mark.parametrize(
    ("name", "word"),
    [("opt", "belongs to no sublayer"), ("rwkv", "beside"), ("deepseek_v4", "tell them apart")],
)
def test_sublayers_that_cannot_be_told_apart_are_refused(name, word):
    model = tiny_architecture(name)
    layers = find_decoder_layers(model)

    def parts():
        units = find_units(layers, "sublayer")
        return parts_of(Skipping(model, layers, units), units)

    with pytest.raises(InputError, match=word):
        parts()
