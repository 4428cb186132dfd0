"""Folders of quantised models: written, opened by transformers, counted, and commands."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

import layerif
from helpers.mixtures import mixture
from helpers.pruned import prune_tiny
from helpers.rounded import mixed_plan, quantize_tiny
from helpers.rounding import grid
from helpers.tiny import SHAPE, WIDE, tiny_model, tiny_tokenizer
from layerif.artifacts import QuantizedManifest
from layerif.cli import app
from layerif.compress.pruning.saving import save_pruned
from layerif.compress.pruning.verifying import verify
from layerif.compress.quantization.packing import check_packable
from layerif.compress.quantization.saving import save_quantized
from layerif.compress.quantization.verifying import verify_quantized
from layerif.errors import InputError, MissingDependencyError
from layerif.model.folders import weights_of
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model

IDS = torch.arange(3, 60)[None]


def even_model(dtype=torch.float32):
    """A Llama whose rows are all whole groups of 32."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = LlamaConfig(**(SHAPE | {"intermediate_size": 64}), **WIDE)
        return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def folder_of(path, model, plan=None, *, packed=False, **options):
    integers = {}
    manifest = quantize_tiny(model, plan or mixed_plan(model), keep=integers.__setitem__, **options)
    save_quantized(model, tiny_tokenizer(), manifest, path, packed=integers if packed else None)
    return path


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma", "phi3"])
def test_a_folder_of_rounded_weights_opens_to_the_same_logits(tmp_path, architecture):
    model = tiny_model(architecture)
    folder = folder_of(tmp_path / "q", model, embeddings=5)
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(again), logits(model))
    assert verify_quantized(folder).ok
    manifest = QuantizedManifest.of_folder(folder)
    assert (manifest.precision, manifest.packed) == ("float32", None)
    card = (folder / "README.md").read_text()
    assert f"{manifest.bytes:,}" in card


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("group_size", [32, 0])
def test_packed_integers_open_to_the_same_logits(tmp_path, dtype, group_size):
    model = even_model(dtype)
    plan = mixed_plan(model, (2, 3, 4, 5, 6, 7, 8, 16))
    folder = folder_of(
        tmp_path / "q", model, plan, packed=True, symmetric=True, group_size=group_size
    )
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    ours, _ = open_model(folder, dtype=str(dtype).removeprefix("torch."))
    # The same weights; how a product in float16 is added up may depend on where they lie.
    tolerance = 0 if dtype == torch.float32 else 0.02
    for other in (again, ours):
        torch.testing.assert_close(logits(other), logits(model), rtol=0, atol=tolerance)
        for one, two in zip(
            find_decoder_layers(other).projections,
            find_decoder_layers(model).projections,
            strict=True,
        ):
            assert torch.equal(one.weight, two.weight)
    found = verify_quantized(folder)
    assert found.ok
    assert found.bytes == QuantizedManifest.of_folder(folder).bytes
    stored = load_file(folder / "model.safetensors")
    own = [t.nbytes for name, t in stored.items() if name.endswith(("_packed", "_scale"))]
    whole = sum(p.numel for p in find_decoder_layers(model).projections)
    kept = sum(p.numel for p in find_decoder_layers(model).projections if plan.level_of(p.key) > 8)
    assert sum(own) == found.bytes - 2 * kept < whole


def test_what_the_packed_format_cannot_say_is_refused_before_any_work():
    model, even = tiny_model(), even_model()
    asked = {p.key: 4 for p in find_decoder_layers(even).projections}
    with pytest.raises(InputError, match="zero points"):
        check_packable(even, asked, grid(), None)
    symmetric = grid(symmetric=True)
    check_packable(even, asked, symmetric, None)
    with pytest.raises(InputError, match="embeddings"):
        check_packable(even, asked, symmetric, 4)
    with pytest.raises(InputError, match="down_proj"):
        check_packable(model, asked, symmetric, None)
    check_packable(model, asked | {key: 16 for key in asked if "down" in key}, symmetric, None)
    with pytest.raises(InputError, match="16 bits"):
        check_packable(even, dict.fromkeys(asked, 16), symmetric, None)
    with pytest.raises(InputError, match="bfloat16"):
        check_packable(even_model(torch.bfloat16), asked, symmetric, None)
    for other in (tiny_model("gpt2"), mixture("mixtral", torch.float32)):
        own = {p.key: 4 for p in find_decoder_layers(other).projections}
        with pytest.raises(InputError, match="linear"):
            check_packable(other, own, symmetric, None)


def test_without_the_library_a_packed_folder_is_refused_by_its_name(monkeypatch):
    model = even_model()
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(MissingDependencyError, match="compressed-tensors"):
        check_packable(model, {}, grid(symmetric=True), None)


def test_an_opened_folder_of_packed_integers_is_a_model_like_any_other(tmp_path, capfd):
    folder = folder_of(tmp_path / "q", even_model(), 4, packed=True, symmetric=True)
    capfd.readouterr()
    model, tokenizer = open_model(folder)
    assert "it/s" not in capfd.readouterr().err
    found = prune_tiny(model, 0.5, method="magnitude")
    assert found.sparsity == 0.5
    save_pruned(model, tokenizer, found, tmp_path / "pruned")
    assert verify(tmp_path / "pruned").ok
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(logits(again), logits(model))


def test_scales_say_nothing_of_the_precision_of_a_folder(tmp_path):
    tensors = {"a.weight_scale": torch.zeros(99, dtype=torch.float16), "b.weight": torch.zeros(9)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert weights_of(tmp_path).precision == torch.float32


def damaged(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return [verdict for verdict in verify_quantized(folder).modules if verdict.fault]


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_that_is_not_what_its_manifest_says_is_found_out(tmp_path, packed):
    model = even_model()
    name = "model.layers.1.mlp.up_proj"

    def fresh(place):
        return folder_of(tmp_path / place, model, 3, packed=packed, symmetric=True)

    if packed:
        (fault,) = damaged(fresh("a"), lambda t: t.pop(f"{name}.weight_scale"))
        assert "weight_scale" in fault.fault
        (fault,) = damaged(fresh("b"), lambda t: t[f"{name}.weight_scale"].fill_(torch.nan))
        assert "finite" in fault.fault
        key = f"{name}.weight_packed"
        (fault,) = damaged(fresh("c"), lambda t: t.update({key: t[key][:-1].clone()}))
        assert "bytes" in fault.fault
    else:
        (fault,) = damaged(fresh("a"), lambda t: t.pop(f"{name}.weight"))
        assert "no weight" in fault.fault
        (fault,) = damaged(fresh("b"), lambda t: t[f"{name}.weight"][0, :9].copy_(torch.arange(9)))
        assert "values" in fault.fault
        (fault,) = damaged(fresh("c"), lambda t: t[f"{name}.weight"][0, 0].fill_(torch.inf))
        assert "finite" in fault.fault
    assert fault.module == "layers.1.mlp.up_proj"


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and code == 0:
        raise result.exception
    assert result.exit_code == code
    return result.stdout


@pytest.fixture
def dense(tmp_path):
    model = even_model()
    model.save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"The cat sat on mat {n}, and looked at {n * n} moons." for n in range(200))
    )
    return tmp_path / "dense"


def test_the_command_writes_finds_again_and_verifies(tmp_path, dense):
    model, out = even_model(), tmp_path / "out"
    plan = mixed_plan(model)
    plan.save(tmp_path / "plan.json")
    words = ["quantize", "--model", dense, "--out", out, "--group-size", 32]
    words += ["--calibration", tmp_path / "text.txt", "--calibration-samples", 4]
    words += ["--context-length", 32, "--plan", tmp_path / "plan.json"]
    said = json.loads(run(*words, "--json"))
    assert said["bytes"] == QuantizedManifest.of_folder(out).bytes
    before = (out / "model.safetensors").stat().st_mtime_ns
    run(*words)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    report = run("verify", out)
    assert f"{said['bytes']:,}" in report
    with pytest.raises(InputError, match="overwrite"):
        run(*words, "--symmetric")
    run(*words, "--symmetric", "--format", "compressed-tensors", "--overwrite")
    assert json.loads(run("verify", out, "--json"))["ok"]
    assert json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"]
    damaged(out, lambda t: t.pop("model.layers.0.mlp.down_proj.weight_shape"))
    run("verify", out, code=3)


def test_commands_that_cannot_be_are_refused(tmp_path, dense):
    words = ["quantize", "--model", dense, "--out", tmp_path / "out"]
    with pytest.raises(InputError, match="bits"):
        run(*words)
    with pytest.raises(InputError, match="bits"):
        run(*words, "--bits", 9)
    with pytest.raises(InputError, match="zero points"):
        run(*words, "--bits", 4, "--format", "compressed-tensors")
    with pytest.raises(InputError, match="column"):
        run(*words, "--bits", 4, "--method", "rtn", "--column-order", "given")
    assert not (tmp_path / "out").exists()


def test_a_run_from_python_quantises_once_and_evaluates(tmp_path, dense):
    text = tmp_path / "text.txt"
    run_folder = layerif.Run(tmp_path / "run", model=str(dense), calibration=text)
    few = {"group_size": 32, "calibration_samples": 4, "context_length": 32}
    made = run_folder.quantize(3, **few)
    assert run_folder.quantize(3, **few) == made
    assert verify_quantized(tmp_path / "run" / "quantized").ok
    rounded = run_folder.evaluate([text], context_length=32, of="quantized")
    whole = run_folder.evaluate([text], context_length=32)
    assert rounded.measurements[0].value != whole.measurements[0].value
    with pytest.raises(InputError, match="none"):
        run_folder.evaluate([text], of="none")
