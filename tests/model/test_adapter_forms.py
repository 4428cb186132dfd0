"""Every form of adapter that PEFT has: opened as PEFT opens it, merged into the same model."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.adapters import adapter_on, logits
from helpers.tiny import CONFIGS, tiny_model, tiny_tokenizer
from layerif.artifacts import hash_model
from layerif.compress.pruning.merging import merged, zeros_of
from layerif.errors import InputError, MissingDependencyError
from layerif.model.opening import open_model
from layerif.model.peft_adapters import with_adapter
from layerif.model.quiet import quiet_transformers

TIED = "ends"  # one weight at both ends of the model
FORMS = {
    "plain": ("llama", {}),
    "rslora": ("llama", {"use_rslora": True}),
    "negative": ("llama", {"lora_alpha": -9}),
    "patterns": ("llama", {"rank_pattern": {"1.self_attn.q_proj": 2}, "alpha_pattern": {"up": 3}}),
    "some layers": ("llama", {"layers_to_transform": [1]}),
    "a parameter": ("llama", {"target_parameters": ["self_attn.v_proj.weight"]}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "bias of B": ("qwen2", {"lora_bias": True, "target_modules": ["q_proj"]}),
    "bias": ("qwen2", {"bias": "all"}),
    "bias at the LoRA": ("qwen2", {"bias": "lora_only"}),
    "dora": ("llama", {"use_dora": True}),
    "another module": ("llama", {"modules_to_save": ["norm", "lm_head"]}),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "embeddings": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied head": (TIED, {"target_modules": ["q_proj", "lm_head"]}),
    "tied embeddings": (TIED, {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied both": (TIED, {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied adapters": (
        TIED,
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied parameter": (TIED, {"target_parameters": ["lm_head.weight"]}),
    "tied head and module": (
        TIED,
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
    ),
    "tied module": (TIED, {"modules_to_save": ["embed_tokens"]}),
    "tied tokens": (TIED, {"trainable_token_indices": [5, 60]}),
    "tied gpt2": ("gpt2", {"target_modules": ["c_attn", "wte"]}),
    "tied gemma3": ("gemma3", {"target_modules": ["q_proj", "embed_tokens"]}),
    "mica": ("llama", {"init_lora_weights": "mica"}),
    "eva": ("llama", {"init_lora_weights": "eva"}),
    "pissa": ("llama", {"init_lora_weights": "pissa"}),
    "pissa by draws": ("llama", {"init_lora_weights": "pissa_niter_4"}),
    "olora": ("llama", {"init_lora_weights": "olora"}),
}


def base(architecture):
    if architecture != TIED:
        return tiny_model(architecture)
    config = copy.deepcopy(CONFIGS["llama"])
    config.tie_word_embeddings = True
    torch.manual_seed(7)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def saved(tmp_path, request):
    """Folders of a model and of an adapter, and the logits of both together."""
    architecture, options = FORMS[request.param]
    model = base(architecture)
    with quiet_transformers():
        model.save_pretrained(tmp_path / "base")
        tiny_tokenizer().save_pretrained(tmp_path / "base")
    wrapped = adapter_on(model, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", logits(wrapped)


@pytest.mark.parametrize("saved", FORMS, indirect=True)
def test_each_form_is_opened_as_it_was_trained_and_merged_into_the_same_model(saved, tmp_path):
    folder, adapter, expected = saved
    model, _ = open_model(folder, device="cpu")
    zeros = zeros_of(model)
    opened = with_adapter(model, adapter)
    # A random decomposition is another on each opening, of PEFT too.
    if "niter" not in (adapter / "adapter_config.json").read_text():
        torch.testing.assert_close(logits(opened), expected, rtol=0, atol=1e-5)
    expected = logits(opened)
    assert hash_model(opened) == hash_model(open_model(folder, adapter=adapter, device="cpu")[0])
    with quiet_transformers():
        merged(opened, zeros).save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=2e-5)


def test_several_active_adapters_are_merged_together():
    model = adapter_on(tiny_model())
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    expected = logits(model)
    torch.testing.assert_close(logits(merged(model)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("architecture", "options", "says"),
    [
        ("llama", {"lora_bias": True}, r"layers\.0\.self_attn\.q_proj"),
        ("llama", {"alora_invocation_tokens": [5, 6]}, "aLoRA"),
        ("llama", {"init_lora_weights": "pissa"}, "zeros_of"),
        (TIED, {"target_modules": ["lm_head"], "trainable_token_indices": [5]}, "tokens"),
    ],
)
def test_what_no_weights_can_do_the_same_as_is_refused(architecture, options, says):
    model = adapter_on(base(architecture), **options)
    with pytest.raises(InputError, match=says):
        merged(model)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"init_lora_weights": "corda"}, InputError, "corda"),
        ({"target_modules": "((.*)*)*#"}, InputError, "seconds"),
        ({"rank_pattern": {"(.*.*)*#": 3}}, InputError, "seconds"),
        ({"target_modules": "("}, InputError, "regular expression"),
        (
            {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
            MissingDependencyError,
            "bitsandbytes",
        ),
    ],
)
def test_what_cannot_be_opened_is_refused(options, error, says, tmp_path, monkeypatch):
    monkeypatch.setattr("layerif.core.files.patterns.SECONDS", 0.5)
    adapter_on(tiny_model()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    with pytest.raises(error, match=says):
        with_adapter(tiny_model(), tmp_path)


def test_warnings_of_peft_are_passed_on(tmp_path, capsys):
    adapter_on(base(TIED), target_modules=["lm_head"]).save_pretrained(tmp_path)
    with_adapter(base(TIED), tmp_path)
    assert "tie_word_embeddings" in capsys.readouterr().err


def test_expressions_that_end_are_left_alone(tmp_path):
    every = r".*\.(self_attn\.)?(q|k)_proj+"
    adapter_on(tiny_model(), target_modules=every).save_pretrained(tmp_path)
    assert isinstance(with_adapter(tiny_model(), tmp_path), PeftModel)


@pytest.mark.parametrize("damage", ["pickle", "pointer", "cut", "missing"])
def test_damaged_weights_of_an_adapter_are_named(tmp_path, damage):
    """Would see: torch's advice to load with weights_only=False, which runs what is in the file."""
    get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:200])
    else:
        weights.unlink()
    if damage == "pickle":
        (tmp_path / "adapter_model.bin").write_bytes(bytes(range(200)))
    if damage == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="adapter_model") as refused:
        with_adapter(tiny_model(), tmp_path)
    assert "weights_only" not in str(refused.value)
