"""Layers passed over, and dropped for good: the same logits, whatever the architecture."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import layerif
from helpers.architectures import tiny_architecture
from helpers.searching import same, states
from helpers.tiny import tiny_model, tiny_tokenizer, vision_model
from layerif.artifacts import MANIFEST_FILE, DroppedLayers, ModuleLevel, Plan
from layerif.compress.depth.configuration import cut_configuration
from layerif.compress.depth.dropping import drop_layers
from layerif.compress.depth.saving import verify_dropped
from layerif.compress.depth.skipping import Skipping
from layerif.compress.depth.units import find_units
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.workflows.dropping import drop_into

IDS = torch.arange(5, 35)[None]
# Lists by layer, indices of layers, leading counts, hybrids, states, windows of every second layer.
WRITTEN = [
    "llama",
    "gpt2",
    "gemma3_text",
    "gemma2",
    "gpt_neo",
    "qwen3_next",
    "granitemoehybrid",
    "bamba",
    "deepseek_v3",
    "laguna",
    "smollm3",
    "mamba2",
    "llama4_text",
    "lfm2_moe",
]


def depth(*levels):
    return Plan(kind="depth", allocation=[*levels])


def logits(model, **words):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False, **words).logits


def skipping(model):
    layers = find_decoder_layers(model)
    units = find_units(layers, "layer")
    return Skipping(model, layers, units), units


@pytest.mark.parametrize("name", ["llama", "gpt2", "rwkv", "bloom"])
def test_passing_over_a_layer_is_taking_it_out(name):
    model = tiny_architecture(name)
    passing, units = skipping(model)
    whole, before = logits(model), states(model)
    with passing.without([units[1], units[2]]):
        found = logits(model)
    modules = dict(model.named_modules())[find_decoder_layers(model).path]
    own = list(modules)
    del modules[1:3]
    expected = logits(model)
    assert torch.equal(found, expected)
    del modules[1:]
    modules.extend(own[1:])
    assert torch.equal(logits(model), whole)
    assert same(before, states(model))


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("levels", [(1, 0, 1, 1), (0, 1, 1, 0)])
def test_plain_transformers_opens_what_is_written(name, levels, tmp_path):
    model = tiny_architecture(name)
    made = drop_into(tmp_path / "m", model, tiny_tokenizer(), depth(*levels))
    passing, units = skipping(model)
    with passing.without([u for u, kept in zip(units, levels, strict=True) if not kept]):
        expected = logits(model)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert len(find_decoder_layers(again)) == sum(levels)
    torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-6)
    assert again.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, 33)
    assert made.kept == [layer for layer, kept in enumerate(levels) if kept]
    assert verify_dropped(tmp_path / "m") == []


def test_generation_with_a_cache_is_that_without(tmp_path):
    drop_into(tmp_path / "m", tiny_architecture("gemma3_text"), tiny_tokenizer(), depth(1, 0, 0, 1))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    one, other = (
        model.generate(IDS, max_new_tokens=8, do_sample=False, use_cache=cached)
        for cached in (True, False)
    )
    assert torch.equal(one, other)


def test_a_language_model_beside_a_vision_tower_is_cut_alone():
    model = vision_model()
    cut = drop_layers(model, depth(1, 0, 1))
    assert cut.config.text_config.num_hidden_layers == 2
    assert cut.config.text_config.layer_types == ["sliding_attention", "sliding_attention"]
    assert cut.config.vision_config.num_hidden_layers == 3
    passing, units = skipping(model)
    with passing.without([units[1]]):
        expected = logits(model)
    assert torch.equal(logits(cut), expected)


def test_the_model_stays_and_shares_its_weights():
    model = tiny_model()
    before, config = states(model), model.config.to_dict()
    cut = drop_layers(model, depth(0, 1, 1))
    assert same(before, states(model))
    assert model.config.to_dict() == config
    ours, theirs = (m.model.layers[i].mlp.up_proj.weight for m, i in ((cut, 0), (model, 1)))
    assert ours.data_ptr() == theirs.data_ptr()
    assert [layer.self_attn.layer_idx for layer in cut.model.layers] == [0, 1]


@pytest.mark.parametrize(
    ("name", "levels", "word"),
    [
        ("jamba", (1, 0, 1, 1), "layer"),  # attention in every second layer
        ("minicpm3", (1, 0, 1, 1), "residual_scale"),  # a scale by the number of layers
        ("diffllama", (1, 0, 1, 1), "lambda_init"),  # by the layer's index
        ("gemma3n_text", (1, 0, 1, 1), "num_kv_shared_layers"),
        ("zamba2", (1, 0, 1, 1), "share"),
        ("nemotron_h", (1, 1, 0, 0), "generated"),  # no attention would be left
    ],
)
def test_what_a_configuration_cannot_say_is_refused(name, levels, word, tmp_path):
    model = tiny_architecture(name)
    with pytest.raises(InputError, match=word):
        drop_into(tmp_path / "m", model, tiny_tokenizer(), depth(*levels))
    assert not (tmp_path / "m").exists()


def test_a_rule_by_index_that_only_shows_in_the_numbers_is_refused(monkeypatch):
    model = tiny_architecture("llama")
    kind = type(model.model.layers[0])
    whole = kind.forward

    def forward(self, hidden_states, *args, **kwargs):
        out = whole(self, hidden_states, *args, **kwargs)
        return out * (1 + self.self_attn.layer_idx % 2)

    monkeypatch.setattr(kind, "forward", forward)
    assert drop_layers(model, depth(1, 0, 0, 1)) is not None
    with pytest.raises(InputError, match="index"):
        drop_layers(model, depth(1, 0, 1, 1))


def test_plans_that_cannot_be_spent_are_refused():
    model = tiny_model()
    with pytest.raises(InputError, match="every layer"):
        drop_layers(model, depth(1, 1, 1))
    with pytest.raises(InputError, match="every layer"):
        drop_layers(model, depth(0, 0, 0))
    with pytest.raises(InputError, match="sparsity"):
        drop_layers(model, Plan(kind="sparsity", allocation=[0.5] * 3))
    with pytest.raises(InputError, match="layers"):
        drop_layers(model, depth(0, 1))
    modules = [
        ModuleLevel(module=unit.key, level=float(unit.key != "layers.1.mlp"), numel=unit.numel)
        for unit in find_units(find_decoder_layers(model), "sublayer")
    ]
    with pytest.raises(InputError, match=r"layers\.1\.mlp"):
        drop_layers(model, Plan.of_modules(modules, kind="depth"))


def test_a_layer_all_of_whose_sublayers_go_is_dropped():
    model = tiny_model()
    modules = [
        ModuleLevel(module=unit.key, level=float(unit.layer != 1), numel=unit.numel)
        for unit in find_units(find_decoder_layers(model), "sublayer")
    ]
    cut = drop_layers(model, Plan.of_modules(modules, kind="depth"))
    assert torch.equal(logits(cut), logits(drop_layers(model, depth(1, 0, 1))))


def test_what_goes_layer_by_layer_is_cut_alike():
    config = LlamaConfig(num_hidden_layers=4, eos_token_id=[1, 2, 3, 4])
    config.per_head = [1, 2, 3, 4]
    config.attn_layer_indices = [1, 3]
    config.by_index = {"0": "a", "1": "b", "3": "d"}
    config.first_k_dense_replace = 2
    config.other = [1, 2, 3]
    cut = cut_configuration(config, [1, 3], 4)
    assert cut.num_hidden_layers == 2
    assert cut.per_head == [2, 4]
    assert cut.attn_layer_indices == [0, 1]
    assert cut.by_index == {"0": "b", "1": "d"}
    assert cut.first_k_dense_replace == 1
    assert cut.other == [1, 2, 3]
    assert cut.eos_token_id == [1, 2, 3, 4]


def test_a_folder_is_reused_and_checked(tmp_path, capsys):
    model, folder = tiny_model(), tmp_path / "m"
    made = drop_into(folder, model, tiny_tokenizer(), depth(1, 0, 1))
    assert drop_into(folder, model, tiny_tokenizer(), depth(1, 0, 1)) == made
    with pytest.raises(InputError, match="another result"):
        drop_into(folder, model, tiny_tokenizer(), depth(0, 1, 1))
    assert DroppedLayers.of_folder(folder).dropped == [1]
    assert "layers dropped | 1" in (folder / "README.md").read_text()
    record = json.loads((folder / MANIFEST_FILE).read_text())
    record["plan"]["allocation"], record["kept"] = [1, 1, 1], [0, 1, 2]
    record["plan"]["total"] = None
    (folder / MANIFEST_FILE).write_text(json.dumps(record))
    (fault,) = verify_dropped(folder)
    assert "2 layers" in fault
    record["kept"] = [0, 1]
    (folder / MANIFEST_FILE).write_text(json.dumps(record))
    with pytest.raises(InputError, match="kept"):
        verify_dropped(folder)


def test_a_model_of_narrower_files_is_saved_in_their_precision(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "whole")
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    model, tokenizer = layerif.open_model(str(tmp_path / "whole"), dtype="float32")
    made = drop_into(tmp_path / "m", model, tokenizer, depth(1, 1, 0))
    assert made.precision == "bfloat16"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto")
    assert again.dtype == torch.bfloat16
    torch.testing.assert_close(
        again.model.layers[1].mlp.up_proj.weight.float(), model.model.layers[1].mlp.up_proj.weight
    )
