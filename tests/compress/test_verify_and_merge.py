"""A pruned folder held against its manifest, and LoRAs merged into it without losing zeros."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.adapters import trained_lora
from helpers.pruned import prune_tiny, pruned_folder
from helpers.tiny import ARCHITECTURES, tiny_model
from layerif.artifacts import MANIFEST_FILE, Manifest
from layerif.compress.pruning.merging import merged
from layerif.compress.pruning.verifying import verify
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pruned_folder(tmp_path_factory.mktemp("pruned") / "model")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_written_holds(architecture, tmp_path):
    found = verify(pruned_folder(tmp_path / "model", architecture))
    assert found.ok
    assert found.sparsity == found.said == 0.5
    assert {verdict.pattern for verdict in found.modules} == {"2:4"}


def changed(folder, tmp_path, change):
    """A copy of a folder with its tensors changed in place."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


UP = "model.layers.1.mlp.up_proj.weight"


def test_what_was_changed_afterwards_is_found(folder, tmp_path):
    def fill_one_in(tensors):
        tensors[UP][tensors[UP] == 0] = 0.5

    (fault,) = [v for v in verify(changed(folder, tmp_path, fill_one_in)).modules if v.fault]
    assert fault.module == "layers.1.mlp.up_proj"
    assert fault.zeros == 0
    assert "0 zeros" in fault.fault


def test_as_many_zeros_in_other_places_break_the_pattern(folder, tmp_path):
    def swap(tensors):
        row = tensors[UP][3]
        zero, kept = int((row == 0).nonzero()[0]), int((row != 0).nonzero()[-1])
        row[zero], row[kept] = 1.0, 0.0

    found = verify(changed(folder, tmp_path, swap))
    assert not found.ok
    (fault,) = [v for v in found.modules if v.fault]
    assert fault.fault == "breaks 2:4 in 1 of 384 groups"


def test_weights_that_are_gone_or_not_finite_are_found(folder, tmp_path):
    def spoil(tensors):
        del tensors[UP]
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan

    faults = {
        v.module: v.fault for v in verify(changed(folder, tmp_path, spoil)).modules if v.fault
    }
    assert faults == {
        "layers.0.mlp.up_proj": "has weights that are not finite",
        "layers.1.mlp.up_proj": "has no weight in the folder",
    }


def test_sharded_files_are_read_together(tmp_path):
    model = tiny_model()
    manifest = prune_tiny(model, 0.5)
    manifest.save(tmp_path / MANIFEST_FILE)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert verify(tmp_path).ok


def test_files_that_are_not_the_models_hide_nothing(folder, tmp_path):
    copy = changed(folder, tmp_path, lambda tensors: tensors[UP].fill_(1.0))
    save_file({UP: load_file(folder / "model.safetensors")[UP]}, copy / "older.safetensors")
    assert [v.module for v in verify(copy).modules if v.fault] == ["layers.1.mlp.up_proj"]


def test_the_command_line_says_whether_it_holds(layerif, folder, tmp_path):
    status, out, _ = layerif("verify", folder)
    assert status == 0
    assert "21 of 21" in out
    status, out, _ = layerif("verify", folder, "--json")
    assert json.loads(out)["ok"] is True
    assert json.loads(out)["modules"][0]["said"] == 512

    copy = changed(folder, tmp_path, lambda tensors: tensors[UP].fill_(1.0))
    status, out, _ = layerif("verify", copy)
    assert status == 3
    assert "layers.1.mlp.up_proj has 0 zeros" in " ".join(out.split())
    status, out, _ = layerif("verify", copy, "--json")
    assert status == 3
    assert json.loads(out)["ok"] is False
    (copy / "model.safetensors").write_bytes(b"no tensors")
    assert layerif("verify", copy)[0] == 2
    (copy / "model.safetensors").unlink()
    assert "no weights are in" in layerif("verify", copy)[2]
    (copy / MANIFEST_FILE).unlink()
    assert "layerif_manifest.json, which `layerif prune` writes" in layerif("verify", copy)[2]


@pytest.mark.parametrize(
    ("architecture", "targets"), [("llama", ["q_proj", "up_proj"]), ("gpt2", ["c_attn", "c_fc"])]
)
def test_a_merged_lora_keeps_the_zeros_and_changes_the_rest(architecture, targets, tmp_path):
    folder = pruned_folder(tmp_path / "pruned", architecture)
    lora = trained_lora(folder, tmp_path / "lora", targets)
    dense, _ = open_model(folder)
    before = {p.key: p.weight.clone() for p in find_decoder_layers(dense).projections}
    deltas = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in lora.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    paths = {id(m): name for name, m in dense.named_modules()}
    of_key = {
        p.key: deltas.get(paths[id(p.module)]) for p in find_decoder_layers(dense).projections
    }
    assert sum(delta is not None for delta in of_key.values()) == 6
    plain = merged(lora)
    assert not any(hasattr(module, "get_base_layer") for module in plain.modules())
    for p in find_decoder_layers(plain).projections:
        old = before[p.key]
        delta = of_key[p.key]
        if delta is None:
            assert torch.equal(p.weight, old)
            continue
        delta = delta if delta.shape == old.shape else delta.T
        assert (delta != 0).float().mean() > 0.9  # by itself it would fill the zeros in
        torch.testing.assert_close(p.weight, torch.where(old == 0, 0.0, old + delta))
        assert torch.equal(p.weight == 0, old == 0)


def test_merging_on_the_command_line(layerif, folder, tmp_path):
    trained_lora(folder, tmp_path / "lora", ["q_proj", "down_proj"])
    out = tmp_path / "merged"
    base = ["merge", folder, "--adapter", tmp_path / "lora", "--out", out]
    status, _, err = layerif(*base)
    assert status == 0, err
    found = verify(out)
    assert found.ok
    assert found.sparsity == 0.5
    manifest = Manifest.load(out / MANIFEST_FILE)
    assert manifest.merged == str(tmp_path / "lora")
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert {m.error for m in manifest.modules} == {None}
    old, new = (open_model(path)[0].model.layers[0].self_attn for path in (folder, out))
    assert not torch.equal(old.q_proj.weight, new.q_proj.weight)
    assert torch.equal(old.k_proj.weight, new.k_proj.weight)

    # The same again is reused, as after a kill that came before the recipe; another is refused.
    (out / "recipe.yaml").unlink()
    assert layerif(*base)[0] == 0
    assert (out / "recipe.yaml").is_file()
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    trained_lora(folder, tmp_path / "other", ["v_proj"])
    other = ["merge", folder, "--adapter", tmp_path / "other", "--out", out]
    assert layerif(*other)[0] == 2
    assert layerif("run", out / "recipe.yaml", "--out", tmp_path / "again")[0] == 0
    again = open_model(tmp_path / "again")[0].model.layers[0].self_attn
    assert torch.equal(again.q_proj.weight, new.q_proj.weight)
    (out / "config.json").unlink()
    assert layerif("merge", out, "--adapter", tmp_path / "lora", "--out", tmp_path / "x")[0] == 2


def test_what_has_no_adapter_to_merge_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no adapter"):
        merged(tiny_model())
    trained = trained_lora(folder, tmp_path / "lora", ["q_proj"])
    trained.merge_adapter()
    with pytest.raises(InputError, match="already"):
        merged(trained)


def test_a_folder_that_is_not_what_its_manifest_says_is_not_merged(layerif, folder, tmp_path):
    trained_lora(folder, tmp_path / "lora", ["q_proj"])
    copy = changed(folder, tmp_path, lambda tensors: tensors[UP].fill_(1.0))
    status, _, err = layerif(
        "merge", copy, "--adapter", tmp_path / "lora", "--out", tmp_path / "out"
    )
    assert status == 2
    assert "layers.1.mlp.up_proj has 0 zeros" in err
    assert not (tmp_path / "out").exists()
