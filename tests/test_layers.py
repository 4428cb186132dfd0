"""Decoder layers and projections are found by structure in every architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig
from transformers.pytorch_utils import Conv1D

from layerif.errors import InputError
from layerif.model import find_decoder_layers
from tiny import ARCHITECTURES, LAYERS, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_map_of_the_layers_and_nothing_else(architecture):
    model = tiny_model(architecture)
    layers = find_decoder_layers(model)
    assert len(layers) == LAYERS
    inside = {
        id(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "lm_head" not in name and "embed" not in name
    }
    assert {id(p.module) for p in layers.projections} == inside
    assert sum(layers.sizes) == sum(p.numel for p in layers.projections)
    assert len({p.key for p in layers.projections}) == len(layers.projections)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_out_by_in_and_writing_prunes_the_model(architecture):
    model = tiny_model(architecture)
    for projection in find_decoder_layers(model).projections:
        x = torch.randn(2, projection.in_features)
        bias = projection.module.bias if projection.module.bias is not None else 0
        torch.testing.assert_close(projection.module(x), x @ projection.weight.T + bias)
        # Without a view, GPT-2's transposed weights would be pruned in a copy.
        projection.weight.zero_()
        assert not projection.module.weight.any()


def test_canonical_names():
    keys = [p.key for p in find_decoder_layers(tiny_model("gpt2")).of(1)]
    assert keys == [
        f"layers.1.{n}" for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]


def test_a_model_without_decoder_layers_is_told_what_was_looked_for():
    model = tiny_model()
    model.model.layers = model.model.layers[:2]
    with pytest.raises(InputError, match=r"nn.ModuleList of 3 modules .* model\.layers \(2\)"):
        find_decoder_layers(model)
    with pytest.raises(InputError, match="module lists here are: none"):
        find_decoder_layers(nn.Sequential(nn.Linear(3, 3)))


def test_fused_expert_weights_are_refused_by_name():
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="weights that are no linear map of their own"):
        find_decoder_layers(model)


def test_experts_in_a_module_list_of_the_same_length_are_not_mistaken_for_layers():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

    model = nn.Module()
    model.blocks = nn.ModuleList([Layer() for _ in range(2)])
    assert find_decoder_layers(model).path == "blocks"
