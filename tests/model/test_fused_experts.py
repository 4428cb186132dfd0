"""Models whose experts are fused into one parameter are refused by its name, before the weights."""

from __future__ import annotations

import pytest
import yaml
from transformers import (
    AutoModelForCausalLM,
    DbrxConfig,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from helpers.tiny import SHAPE, tiny_tokenizer
from layerif.compress.pruning.runner import prune
from layerif.data import Task
from layerif.data.base import Example
from layerif.errors import InputError
from layerif.evaluation.evaluate import evaluate
from layerif.influence.scoring import score
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model

EXPERTS = {"num_experts": 2, "moe_intermediate_size": 16}
FUSED = {
    "mixtral": (
        MixtralConfig(**SHAPE, num_local_experts=2),
        r"model\.layers\.0\.mlp\.experts\.gate_up_proj is one parameter of shape \(2, 96, 32\)",
    ),
    "qwen2_moe": (
        Qwen2MoeConfig(**SHAPE, **EXPERTS, shared_expert_intermediate_size=16),
        r"model\.layers\.0\.mlp\.experts\.gate_up_proj is one parameter of shape \(2, 32, 32\)",
    ),
    # Its first layer is dense.
    "qwen3_moe": (
        Qwen3MoeConfig(**SHAPE, **EXPERTS, head_dim=8, mlp_only_layers=[0]),
        r"model\.layers\.1\.mlp\.experts\.gate_up_proj is one parameter of shape \(2, 32, 32\)",
    ),
    # The rows of its experts are stacked in two dimensions.
    "dbrx": (
        DbrxConfig(
            vocab_size=260,
            d_model=32,
            n_layers=2,
            n_heads=4,
            ffn_config={"moe_num_experts": 2, "ffn_hidden_size": 48, "hidden_size": 32},
            attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ),
        r"transformer\.blocks\.0\.ffn\.experts\.mlp\.w1 is one parameter of shape \(96, 32\)",
    ),
}
EXAMPLES = [Example("a", " b", (" b", " c"), 0)] * 2
TEXT = "Some text. " * 20 + "\n\n" + "Some other text. " * 20


@pytest.mark.parametrize("architecture", FUSED)
def test_every_function_names_the_parameter(architecture):
    config, message = FUSED[architecture]
    model, tokenizer = AutoModelForCausalLM.from_config(config), tiny_tokenizer()
    model.forward = None  # nothing may be run before
    calls = [
        lambda: find_decoder_layers(model),
        lambda: score(model, tokenizer, EXAMPLES, EXAMPLES),
        lambda: prune(model, 0.5, tokenizer=tokenizer, calibration=TEXT),
        lambda: evaluate(model, tokenizer, [Task("made up", {"test": EXAMPLES}, {})]),
    ]
    for call in calls:
        with pytest.raises(InputError, match=message):
            call()


@pytest.fixture
def folder(tmp_path):
    """A model folder without weights, which thus cannot be what is refused."""
    tiny_tokenizer().save_pretrained(tmp_path / "moe")
    FUSED["mixtral"][0].save_pretrained(tmp_path / "moe")
    return tmp_path / "moe"


def test_open_model_refuses_before_it_reads_weights(folder):
    with pytest.raises(InputError, match=FUSED["mixtral"][1]):
        open_model(folder)


def test_every_command_refuses_before_it_reads_weights(layerif, folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": str(folder),
                "out": str(tmp_path / "run"),
                "score": {"task": "agreement", "train_samples": 8, "validation_samples": 4},
                "sparsity": {"target": 0.5},
                "prune": {"calibration": str(text), "calibration_samples": 4, "context_length": 32},
                "evaluate": {"tasks": ["agreement"], "samples": 4},
            }
        )
    )
    out = ["--out", tmp_path / "out"]
    for command in (
        ["score", "--model", folder, "--task", "agreement", *out],
        ["prune", "--model", folder, "--sparsity", 0.5, "--calibration", text, *out],
        ["evaluate", "--model", folder, "--tasks", "agreement", *out],
        ["run", recipe],
    ):
        status, _, err = layerif(*command)
        assert status == 2
        assert "model.layers.0.mlp.experts.gate_up_proj is one parameter" in err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()
