"""Decoder layers and projections are found by structure in every architecture."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig
from transformers.pytorch_utils import Conv1D

from helpers.tiny import ARCHITECTURES, LAYERS, SHAPE, tiny_model, tiny_tokenizer, vision_model
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.saving import save_pruned
from layerif.compress.pruning.verifying import verify
from layerif.data.base import Example
from layerif.errors import InputError
from layerif.evaluation.perplexity import perplexity
from layerif.influence.scoring import score
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model, open_skeleton


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
    with pytest.raises(InputError, match=r"3 modules .* model\.layers \(2\)"):
        find_decoder_layers(model)
    with pytest.raises(InputError, match="none"):
        find_decoder_layers(nn.Sequential(nn.Linear(3, 3)))


def test_experts_in_a_module_list_of_the_same_length_are_not_mistaken_for_layers():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

    model = nn.Module()
    model.blocks = nn.ModuleList([Layer() for _ in range(2)])
    assert find_decoder_layers(model).path == "blocks"


def test_a_norm_for_each_head_is_no_fused_weight():
    """Cohere's has two dimensions."""
    model = AutoModelForCausalLM.from_config(CohereConfig(**SHAPE, use_qk_norm=True))
    assert model.model.layers[0].self_attn.q_norm.weight.ndim == 2
    assert len(find_decoder_layers(model)) == LAYERS


@pytest.fixture(scope="module")
def seeing():
    return vision_model()


def test_the_layers_of_a_multimodal_model_are_those_of_its_language_model(seeing, tmp_path):
    seeing.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    opened, _ = open_model(tmp_path, device="cpu")
    for model in (seeing, open_skeleton(tmp_path), opened):
        layers = find_decoder_layers(model)
        assert type(model).__name__ == "Gemma3ForConditionalGeneration"
        assert layers.path == "model.language_model.layers"
        towers = [m for name, m in model.named_modules() if name.endswith("encoder.layers")]
        assert [len(tower) for tower in towers] == [LAYERS]
        assert sum(p.numel() for p in towers[0].parameters()) > layers.sizes.sum()


def test_what_is_written_of_a_multimodal_model_is_verified(seeing, tmp_path):
    text = " ".join(f"Line {i} of {i * i}." for i in range(200))
    about = {"tokenizer": tiny_tokenizer(), "calibration": text, "calibration_samples": 4}
    pruned = copy.deepcopy(seeing)
    manifest = prune(pruned, 0.5, context_length=32, **about)
    save_pruned(pruned, tiny_tokenizer(), manifest, tmp_path / "pruned")
    found = verify(tmp_path / "pruned")
    assert found.ok
    assert found.sparsity == pytest.approx(0.5, abs=1e-3)


def test_a_multimodal_model_is_scored_pruned_and_measured_as_a_language_model(seeing):
    text = " ".join(f"Line {i} of {i * i}." for i in range(40))
    examples = [Example(f"Line {i}", f" of {i * i}.") for i in range(3)]
    tokenizer = tiny_tokenizer()
    scores = score(seeing, tokenizer, examples, examples, rank=2)
    assert scores.influence.shape == (LAYERS, 3)
    tower = seeing.model.vision_tower.state_dict()
    before = {name: weight.clone() for name, weight in tower.items()}
    manifest = prune(
        seeing, 0.5, tokenizer=tokenizer, calibration=text, calibration_samples=4, context_length=32
    )
    assert manifest.sparsity == pytest.approx(0.5)
    assert all(torch.equal(tower[name], weight) for name, weight in before.items())
    assert perplexity(seeing, tokenizer, text, context_length=32).value > 1
