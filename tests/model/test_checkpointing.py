"""Gradient checkpointing while scoring: the same numbers, from fewer kept activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from helpers.scoring import measure
from helpers.tiny import ARCHITECTURES, float64_tolerance, tiny_model
from layerif.model.layers import find_decoder_layers
from layerif.model.modes import checkpointed, evaluation_mode


def kept_bytes(run):
    """Bytes of the distinct tensors that the forward passes of `run` keep for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("subspace", ["fresh_lora", "full"])
def test_the_scores_are_the_same(architecture, subspace):
    model = tiny_model(architecture, dtype=torch.float64)
    options = {"subspace": subspace, "estimator": "grad_dot"}
    reference = measure(model, **options)
    found = measure(model, **options, gradient_checkpointing=True)
    gap = np.abs(found.projection_influence - reference.projection_influence).max()
    tolerance = max(1e-10, float64_tolerance(architecture))
    assert gap <= tolerance * np.abs(reference.projection_influence).max()


def test_a_model_with_checkpointing_switched_on_is_taken_at_its_word(monkeypatch):
    model = tiny_model(dtype=torch.float64)
    layer = find_decoder_layers(model).modules[0]
    runs = []
    layer.register_forward_pre_hook(lambda *_: runs.append(1))
    inner = layer.mlp.register_forward_pre_hook(lambda *_: runs.append("inner"))
    reference = measure(model)
    assert runs.count("inner") == runs.count(1)
    model.activation_checkpointing_enable()
    runs.clear()
    found = measure(model)
    assert runs.count("inner") == 2 * runs.count(1)
    inner.remove()
    assert np.allclose(found.influence, reference.influence, rtol=1e-10)
    assert "forward" not in vars(layer)


def test_less_is_kept_for_the_backward_pass():
    model = tiny_model()
    layers = find_decoder_layers(model).modules
    ids = torch.arange(60)[None] + 3

    def forward():
        hidden = model.get_input_embeddings()(ids).detach().requires_grad_()
        with evaluation_mode(model):
            model(inputs_embeds=hidden, use_cache=False)

    whole = kept_bytes(forward)
    with checkpointed(layers):
        least = kept_bytes(forward)
    assert least < whole / 3


def test_a_forward_that_stands_on_the_layer_is_put_back():
    layer = nn.Linear(3, 3)
    placed = layer.forward
    layer.forward = placed
    inputs = torch.randn(2, 3, requires_grad=True)
    with checkpointed([layer]):
        layer(inputs).sum().backward()
    assert vars(layer)["forward"] is placed
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(2, 3))
