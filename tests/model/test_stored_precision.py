"""The precision of a model's files is that of the folder pruned or merged from them."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import Manifest
from layerif.compress.pruning.merging import merge_into
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.saving import save_pruned
from layerif.compress.pruning.verifying import verify
from layerif.errors import NumericalError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model


@pytest.fixture
def narrow(tmp_path):
    tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path / "narrow")
    tiny_tokenizer().save_pretrained(tmp_path / "narrow")
    return tmp_path / "narrow"


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_a_bfloat16_folder_stays_one_and_is_what_its_manifest_says(
    layerif, narrow, tmp_path, text, method
):
    out = tmp_path / "out"
    command = f"prune --model {narrow} --method {method} --sparsity 0.5 --out {out}"
    if method == "sparsegpt":
        command += f" --calibration {text} --context-length 32 --calibration-samples 8"
    assert layerif(*command.split())[0] == 0
    stored, before = weights(out), weights(narrow)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    manifest = Manifest.of_folder(out)
    assert (manifest.precision, manifest.setting.dtype) == ("bfloat16", "float32")
    assert verify(out).ok
    assert (out / "model.safetensors").stat().st_size < 1.01 * (
        narrow / "model.safetensors"
    ).stat().st_size
    for name, weight in stored.items():
        kept = weight != 0
        if method == "magnitude":
            assert torch.equal(weight[kept], before[name][kept])
    # The same again is the same work.
    assert layerif(*command.split())[0] == 0


def test_a_float32_folder_and_one_computed_in_a_narrower_precision_stay_as_they_were(
    layerif, model, tmp_path
):
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        command = f"prune --model {model} --method magnitude --sparsity 0.5 --dtype {dtype}"
        assert layerif(*command.split(), "--out", out)[0] == 0
        assert {str(t.dtype) for t in weights(out).values()} == {f"torch.{dtype}"}
        assert Manifest.of_folder(out).precision is None


def test_a_merge_is_rounded_to_the_pruned_folders_precision(layerif, narrow, tmp_path):
    pruned, adapter, out = tmp_path / "pruned", tmp_path / "adapter", tmp_path / "out"
    command = f"prune --model {narrow} --method magnitude --sparsity 0.5 --out {pruned}"
    assert layerif(*command.split())[0] == 0
    plain, _ = open_model(pruned, device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False)
        get_peft_model(plain, config).save_pretrained(adapter)
    manifest = merge_into(out, pruned, adapter, device="cpu")
    assert manifest.precision == "bfloat16"
    assert verify(out).ok
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.bfloat16}


def test_rounding_makes_zeros_that_are_counted_and_never_infinity(narrow, tmp_path):
    opened, tokenizer = open_model(narrow, device="cpu")
    manifest = prune(opened, 0.5, method="magnitude")
    projection = find_decoder_layers(opened).projections[0]
    kept = projection.weight.nonzero()[0]
    with torch.no_grad():
        projection.weight[tuple(kept)] = 1e-42  # half of the least bfloat16 is 4.6e-41
        opened.model.norm.weight[0] = 1 + 2**-20  # what no bfloat16 is, as in a mixed checkpoint
    saved = save_pruned(opened, tokenizer, manifest, tmp_path / "out")
    assert saved.modules[0].zeros == manifest.modules[0].zeros + 1
    assert Manifest.of_folder(tmp_path / "out") == saved
    assert verify(tmp_path / "out").ok
    assert weights(tmp_path / "out")["model.norm.weight"][0] == 1 + 2**-20
    assert opened.dtype == torch.float32
    with torch.no_grad():
        projection.weight[tuple(kept)] = 3.4e38
    with pytest.raises(NumericalError, match="bfloat16"):
        save_pruned(opened, tokenizer, manifest, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_saving_changes_no_weight_of_the_model(model, tmp_path):
    folder = tmp_path / "narrow"
    narrow, tokenizer = open_model(model, dtype="bfloat16", device="cpu")
    narrow.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    opened, tokenizer = open_model(folder, dtype="float32", device="cpu")
    manifest = prune(opened, 0.5, method="magnitude")
    with torch.no_grad():
        for weight in opened.parameters():
            weight.add_(1e-4)  # no number of bfloat16
    before = {name: weight.clone() for name, weight in opened.state_dict().items()}
    save_pruned(opened, tokenizer, manifest, tmp_path / "pruned")
    assert all(torch.equal(weight, before[name]) for name, weight in opened.state_dict().items())
    assert open_model(tmp_path / "pruned", dtype="bfloat16")[0].dtype == torch.bfloat16
