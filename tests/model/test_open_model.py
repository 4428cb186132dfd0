"""Opening models by name, folder and GGUF file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe, open_model, open_skeleton
from layerif.model.packaged import alias_pieces


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_local_folder_opens_in_the_precision_asked_for(folder, dtype):
    model, tokenizer = open_model(folder, dtype=dtype, device="cpu")
    assert model.dtype == getattr(torch, dtype)
    assert not model.training
    assert tokenizer("ab")["input_ids"] == [67, 68]
    assert describe(model).name == str(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_skeleton_has_the_shape_without_the_weights(architecture, tmp_path):
    built = tiny_model(architecture)
    built.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    skeleton, (model, _) = open_skeleton(tmp_path), open_model(tmp_path, device="cpu")
    assert next(skeleton.parameters()).device.type == "meta"
    assert describe(skeleton) == describe(model)
    assert type(model) is type(built)
    assert [p.key for p in find_decoder_layers(skeleton).projections] == [
        p.key for p in find_decoder_layers(built).projections
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "no/such/folder"),
        ("./absent", "absent"),
        ("absent.gguf", r"absent\.gguf"),
    ],
)
def test_a_model_that_is_not_there_is_named(name, message):
    with pytest.raises(InputError, match=message):
        open_model(name)


def test_a_hub_id_that_cannot_be_reached_says_what_a_model_can_be(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"reached.*\(smollm2"):
        open_model("nobody/no-such-model-9c1d")


def test_a_folder_without_a_model_and_a_file_that_is_no_gguf_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        open_model(tmp_path)
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not a model")
    with pytest.raises(InputError, match="'GGUF'"):
        open_model(fake)


def test_unknown_precision_and_device_are_refused(folder):
    with pytest.raises(InputError, match=r"'int3'.*float32, bfloat16"):
        open_model(folder, dtype="int3")
    with pytest.raises(InputError, match="'teapot'"):
        open_model(folder, device="teapot")


@pytest.mark.slow
@pytest.mark.real_model
def test_smollm2_is_the_dequantised_file_as_a_plain_model(smollm2, tmp_path):
    from gguf import GGUFReader, dequantize

    model, tokenizer = smollm2
    info = describe(model)
    assert (info.name, info.layers) == ("smollm2", 30)
    assert info.caveat == "dequantised from a Q4_1 GGUF file"
    layers = find_decoder_layers(model)
    assert len(layers.projections) == 210
    reader = GGUFReader(alias_pieces("smollm2")[0])
    tensors = {t.name: t for t in reader.tensors}
    for name, projection in (("ffn_up", 5), ("ffn_down", 6), ("attn_output", 3), ("attn_v", 2)):
        stored = tensors[f"blk.0.{name}.weight"]
        expected = dequantize(stored.data, stored.tensor_type)
        np.testing.assert_array_equal(layers.projections[projection].weight.numpy(), expected)
    # Q4_1 has 16 levels in a block of 32: far fewer values than weights.
    row = layers.projections[5].weight[0]
    assert row.unique().numel() <= row.numel() / 32 * 16
    model.save_pretrained(tmp_path / "plain")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "plain").num_parameters() > 134e6
    assert tokenizer.decode(tokenizer("Hello, world 42")["input_ids"]) == "Hello, world 42"


def test_code_of_a_models_own_runs_when_asked_for_alone(layerif, folder, tmp_path, monkeypatch):
    """A pruned folder of such a model is verified by the same code, which it brings with it."""
    cache = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(cache, str(tmp_path / "code"))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    pruned = tmp_path / "pruned"
    prune = f"prune --model {folder} --method magnitude --sparsity 0.5 --out {pruned}".split()
    (tmp_path / "scores.json").write_text("[0.1, 0.3, 0.2]")
    named = f"{tmp_path / 'scores.json'} --model {folder}"
    for command in (
        prune,
        ["verify", str(pruned)],
        f"allocate sparsity {named} --sparsity 0.5".split(),
        f"allocate experts {named} --total 6".split(),
        f"allocate ranks {named} --total 6".split(),
    ):
        status, _, says = layerif(*command)
        assert status == 2
        assert "Python code" in says
        assert "pass --trust-remote-code" in says
        assert layerif(*command, "--trust-remote-code")[0] == 0
    # A recipe does not say so, be it of a command or of a whole run: its command line does.
    whole = tmp_path / "whole.yaml"
    whole.write_text(
        f"model: {folder}\nout: {tmp_path / 'run'}\n"
        "score: {task: agreement, train_samples: 3, validation_samples: 2}\n"
        "sparsity: {target: 0.5}\nprune: {method: magnitude}\n"
        "evaluate: {tasks: [agreement], samples: 3}\n"
    )
    assert "trust" not in (pruned / "recipe.yaml").read_text()
    for recipe in (pruned / "recipe.yaml", whole):
        status, _, says = layerif("run", recipe)
        assert status == 2
        assert "pass --trust-remote-code" in says
        status, _, says = layerif("run", recipe, "--trust-remote-code")
        assert status == 0, says
