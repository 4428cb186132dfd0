"""Model folders that are damaged, hostile or of another kind: each error begins with the cause."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    CTRLConfig,
    LlavaConfig,
    OpenAIGPTConfig,
    T5Config,
    xLSTMConfig,
)

import layerif as package
from helpers.tiny import SHAPE, SPECIAL, WIDE, tiny_model, tiny_tokenizer
from layerif.errors import InputError, LayerifError, MissingDependencyError, NumericalError
from layerif.influence.doctor import examine
from layerif.model import opening
from layerif.model.causes import reading
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model, open_skeleton, open_tokenizer


@pytest.fixture
def folder(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


@pytest.fixture
def parts(tmp_path):
    tiny_model().save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path / "parts")
    return tmp_path / "parts"


def refused(folder, word, kind=InputError):
    with pytest.raises(kind, match=word) as caught:
        open_model(folder, device="cpu")
    said = str(caught.value)
    assert type(caught.value) is kind
    assert len(said) <= 600
    assert not said.startswith("cannot")
    return said


def configured(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"num_hidden_layers": "3"}, "num_hidden_layers"),
        ({"hidden_size": None}, "hidden_size"),
        ({"rope_parameters": {"rope_type": "odd", "rope_theta": 1.0}}, "rope_type is 'odd'"),
        ({"hidden_act": "odd"}, "hidden_act is 'odd'"),
        ({"pad_token_id": 999}, "pad_token_id is 999"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": -3}, "num_hidden_layers is -3"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1e"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3"),
        ({"vocab_size": 300}, r"\(260, 32\).*\(300, 32\)"),
        ({"vocab_size": 10**9}, "64,000,0"),
        ({"vocab_size": 10**18}, "overflow"),
        ({"num_attention_heads": 0}, "configuration"),
        ({"model_type": "none-such"}, "none-such"),
        ({"transformers_weights": "../model/model.safetensors"}, "weights"),
    ],
)
def test_a_configuration_that_cannot_be_is_named_before_memory_is_filled(folder, settings, word):
    configured(folder, **settings)
    refused(folder, word)


def test_outputs_are_named_whatever_the_configuration_says(folder):
    configured(folder, return_dict=False)
    model, tokenizer = open_model(folder, device="cpu")
    reference, _ = open_model(folder, device="cpu")
    ids = tokenizer("some text", return_tensors="pt")["input_ids"]
    assert torch.equal(model(ids).logits, reference(ids).logits)
    assert package.evaluate(model, tokenizer, [package.load_task("agreement")], samples=2)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert name in refused(folder, "git lfs pull")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", '{"version": "1.0", "trunc'),
        ("tokenizer_config.json", "[]"),
        ("special_tokens_map.json", "[1]"),
        ("generation_config.json", "[]"),
        ("model.safetensors", "short"),
    ],
)
def test_a_damaged_file_is_named(folder, name, text):
    (folder / name).write_text(text)
    refused(folder, rf"{name}")


def test_a_folder_without_a_tokenizer_without_weights_or_with_an_adapter_says_so(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refused(folder, "^no tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    refused(folder, "^no weights")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "adapter")
    (folder / "config.json").unlink()
    refused(folder, "adapter")
    (folder / "adapter_config.json").rename(folder / "some.gguf")
    refused(folder, r"some\.gguf")


@pytest.mark.parametrize(
    ("place", "word"),
    [
        ("../copy/model.safetensors", "beside"),
        ("/etc/hostname", "beside"),
        ("config.json", "beside"),
        ("model-00009-of-00005.safetensors", "missing"),
        ("model-00001-of-00005.safetensors", "lm_head.weight is not in"),
        (7, "beside"),
    ],
)
def test_an_index_names_files_of_its_own_folder_that_hold_the_weights(parts, place, word):
    index = parts / "model.safetensors.index.json"
    stated = json.loads(index.read_text())
    stated["weight_map"]["lm_head.weight"] = place
    index.write_text(json.dumps(stated))
    refused(parts, word)


def test_an_index_without_a_map_and_a_part_cut_short_are_named(parts):
    part = parts / "model-00003-of-00005.safetensors"
    part.write_bytes(part.read_bytes()[:-10])
    refused(parts, part.name)
    (parts / "model.safetensors.index.json").write_text('{"metadata": {}}')
    refused(parts, "weight_map")


class _Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_read_as_tensors_alone(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    pickled, ran = folder / "pytorch_model.bin", tmp_path / "ran"
    torch.save(weights, pickled)
    model, _ = open_model(folder, device="cpu")
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    del model
    torch.save(weights | {"more": _Code(ran)}, pickled)
    assert "mkdir" in refused(folder, "code")
    pickled.write_bytes(pickle.dumps(_Code(ran)))
    assert "weights_only" not in refused(folder, r"pytorch_model\.bin")
    pickled.write_text("hello")
    refused(folder, r"pytorch_model\.bin")
    torch.save(list(weights.values()), pickled)
    refused(folder, "dictionary")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("method", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
    ],
)
def test_a_missing_package_is_named_with_the_command(folder, method, package):
    configured(folder, quantization_config=method)
    try:
        refused(folder, f"pip install {package}", MissingDependencyError)
    except ImportError:
        pytest.skip(f"{package} is installed")


def test_the_packages_of_tokenizers_are_named(folder):
    """Whichever of them transformers tries last."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "tokenizer.model").write_bytes(b"\x0a\x05hello")
    with pytest.raises(LayerifError, match=r"sentencepiece|tokenizer"):
        open_tokenizer(folder)
    with pytest.raises(MissingDependencyError, match="pip install none-such"), reading("a model"):
        import none_such  # noqa: F401


def test_out_of_memory_says_what_would_fit(folder, monkeypatch):
    """No device here is as small as the model, so that the device's own error stands in."""

    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(opening.PreTrainedModel, "to", full)
    refused(folder, r"^out of memory.*bfloat16")


def test_interruptions_pass(folder, monkeypatch):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(opening.AutoTokenizer, "from_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        open_tokenizer(folder)


def test_float16_that_overflows_names_the_layer_and_the_remedy(folder, layerif):
    path = folder / "model.safetensors"
    weights = load_file(path)
    # Large, yet within float16: the products leave its range.
    weights["model.layers.1.mlp.down_proj.weight"].fill_(60_000.0)
    weights["model.layers.1.mlp.up_proj.weight"].fill_(100.0)
    path.unlink()
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(NumericalError, match=r"float16 at layer 1 .*bfloat16"):
        open_model(folder, dtype="float16", device="cpu")
    assert open_model(folder, dtype="bfloat16", device="cpu")
    status, _, says = layerif("doctor", folder, "--dtype", "float16")
    assert (status, "layer 1" in says) == (3, True)
    weights["model.norm.weight"][0] = float("nan")
    path.unlink()
    save_file(weights, path, {"format": "pt"})
    refused(folder, r"model\.norm\.weight", NumericalError)


def test_another_kind_of_model_is_named(tmp_path):
    T5Config(d_model=32).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'t5'"):
        open_model(tmp_path)


def test_the_language_model_of_a_model_with_images_is_opened(tmp_path, text):
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
    }
    config = LlavaConfig(
        text_config={**SHAPE, **WIDE, "model_type": "llama"},
        vision_config={**vision, "model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = open_model(tmp_path, device="cpu")
    assert find_decoder_layers(model).path == "model.language_model.layers"
    ids = tokenizer("plain text", return_tensors="pt")["input_ids"]
    hidden = model.model.language_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(model(input_ids=ids).logits, model.lm_head(hidden))
    manifest = package.prune(
        model,
        0.5,
        tokenizer=tokenizer,
        calibration=text.read_text(),
        calibration_samples=2,
        context_length=32,
    )
    assert manifest.sparsity == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", [CTRLConfig, OpenAIGPTConfig])
def test_embeddings_scaled_in_place_and_layers_that_return_lists_work(kind, dtype, tmp_path, text):
    shape = {"vocab_size": 260, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
    config = kind(**shape, dff=48, **SPECIAL, **WIDE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        package_model = opening.AutoModelForCausalLM.from_config(config)
    package_model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = open_model(tmp_path, dtype=dtype, device="cpu")
    task = package.load_task("agreement")
    samples = task.sample("train", 3, 0), task.sample("validation", 2, 0)
    assert examine(model, tokenizer, *samples, rank=2).ok
    options = {"tokenizer": tokenizer, "calibration": text.read_text(), "calibration_samples": 2}
    assert package.prune(model, 0.5, context_length=32, **options).sparsity == pytest.approx(
        0.5, abs=1e-3
    )


def test_code_that_a_precision_does_not_reach_is_refused_on_opening(tmp_path):
    """xLSTM's code for whole chunks mixes float32 and bfloat16, that for short texts does not."""
    config = xLSTMConfig(
        vocab_size=260, hidden_size=32, num_heads=4, num_blocks=2, num_hidden_layers=2, chunk_size=8
    )
    opening.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert open_model(tmp_path, device="cpu")
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(
            InputError, match=rf"xLSTMForCausalLM\) does not run in {dtype}.*float32"
        ):
            open_model(tmp_path, dtype=dtype, device="cpu")


def test_the_meta_device_is_no_device(model):
    with pytest.raises(InputError, match="meta"):
        open_model(model, device="meta")


def test_a_mistyped_folder_is_asked_for_once(monkeypatch):
    """Nothing answers at the address: the client would try again for half a minute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"^no folder 'runs/p-24'.*hub"):
        open_skeleton("runs/p-24")
    assert time.perf_counter() - began < 5
    for name in ("a/b/c", "no such", "x" * 200, "../up"):
        with pytest.raises(InputError, match="no model folder"):
            open_skeleton(name)


def test_a_copy_in_the_hubs_cache_is_opened_without_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--tiny"
    shutil.copytree(model, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    asked = []
    ask = opening.hub_source
    monkeypatch.setattr(opening, "hub_source", lambda name: asked.append(name) or ask(name))
    opened, _ = open_model("somebody/tiny", device="cpu")
    assert opened.config.name_or_path == "somebody/tiny"
    assert asked == ["somebody/tiny"], "the hub is asked once"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_files_closed_to_a_user_without_a_home_are_named(folder, tmp_path, name):
    open_model(folder, device="cpu")  # what it imports may lie where somebody else cannot go
    (folder / name).chmod(0o600)
    for parent in (folder, *folder.parents[:-2]):
        parent.chmod(0o755)
    (tmp_path / "said").touch()
    (tmp_path / "said").chmod(0o666)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgid(54321)
            os.setuid(54321)
            os.environ.pop("HOME", None)
            open_model(folder, device="cpu")
        except LayerifError as error:
            (tmp_path / "said").write_text(str(error))
            status = error.exit_code
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert name in (tmp_path / "said").read_text()


def test_a_tokenizer_that_reads_no_text_is_refused_on_opening(model, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"model_max_length": {"a": 1}})
    )
    with pytest.raises(InputError, match="tokenizer"):
        open_model(folder)
