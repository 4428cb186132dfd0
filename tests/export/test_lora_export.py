"""A LoRA of mixed ranks and scales, written with one of each, does what it did before."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from helpers.adapters import fill_loras
from helpers.tiny import tiny_model
from layerif.adapters import lora_config_for
from layerif.artifacts import Plan
from layerif.errors import InputError
from layerif.export.lora import export_lora

IDS = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
PLAN = Plan(kind="ranks", allocation=[1, 3, 4])


def saved(folder, config):
    """A trained adapter's folder, and its logits."""
    wrapped = get_peft_model(tiny_model(), config)
    fill_loras(wrapped)
    wrapped.save_pretrained(folder)
    return logits(wrapped)


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def reopened(folder):
    return PeftModel.from_pretrained(tiny_model(), folder)


def configs():
    """Scales: alike; by one alpha, so that they fall with the rank; by the root of the rank."""
    model = tiny_model()
    return {
        "alike": lora_config_for(PLAN, model),
        "one alpha": lora_config_for(PLAN, model, lora_alpha=5),
        "roots": lora_config_for(PLAN, model, use_rslora=True),
        "bias": LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], lora_bias=True),
        "dora": lora_config_for(PLAN, model, use_dora=True),
        "embedding": LoraConfig(
            r=2, rank_pattern={"q_proj": 5}, target_modules=["q_proj", "embed_tokens"]
        ),
    }


@pytest.mark.parametrize("name", ["alike", "one alpha", "roots", "bias", "dora", "embedding"])
@pytest.mark.parametrize("pad", [True, False])
def test_logits_are_as_before(name, pad, tmp_path):
    before = saved(tmp_path / "own", configs()[name])
    # Without the adapter the logits are far from those with it.
    assert (logits(tiny_model()) - before).abs().max() > 0.05
    made = export_lora(tmp_path / "own", tmp_path / "out", pad=pad)
    torch.testing.assert_close(logits(reopened(tmp_path / "out")), before, atol=1e-5, rtol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["alpha_pattern"] == {}
    assert not config["use_rslora"]
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    ranks = {w.shape[0] for n, w in weights.items() if n.endswith("lora_A.weight")}
    if pad:
        assert ranks == {made.rank} == {config["r"]}
        assert config["rank_pattern"] == {}


def test_scales_that_are_alike_leave_the_numbers_as_they_are(tmp_path):
    saved(tmp_path / "own", configs()["alike"])
    export_lora(tmp_path / "own", tmp_path / "out")
    old, new = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("own", "out"))
    for name, weight in old.items():
        rows, columns = weight.shape
        assert torch.equal(new[name][:rows, :columns], weight)
        assert not new[name][rows:].any()
        assert not new[name][:, columns:].any()


@pytest.mark.parametrize("pad", [True, False])
def test_every_engine_scales_it_alike(pad, tmp_path):
    """llama.cpp divides the one alpha by each tensor's own rank, vLLM by that of the configuration.

    Of the adapter as it was, the first layer's would be 4 times too large in llama.cpp.
    """
    saved(tmp_path / "own", configs()["alike"])
    made = export_lora(tmp_path / "own", tmp_path / "out", pad=pad)
    old, new = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("own", "out"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    for name in (n for n in old if n.endswith("lora_A.weight")):
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = name.replace("lora_A", "lora_B")
        meant = made.scales[module] * old[b].double() @ old[name].double()
        llama = config["lora_alpha"] / new[name].shape[0]
        torch.testing.assert_close(llama * new[b].double() @ new[name].double(), meant)
        if pad:
            vllm = config["lora_alpha"] / config["r"]
            torch.testing.assert_close(vllm * new[b].double() @ new[name].double(), meant)


def test_a_rank_of_ones_own_is_at_least_the_largest(tmp_path):
    before = saved(tmp_path / "own", configs()["alike"])
    with pytest.raises(InputError, match="rank"):
        export_lora(tmp_path / "own", tmp_path / "out", rank=3)
    assert not (tmp_path / "out").exists()
    export_lora(tmp_path / "own", tmp_path / "out", rank=8)
    torch.testing.assert_close(logits(reopened(tmp_path / "out")), before, atol=1e-5, rtol=1e-5)


def test_other_folders_are_refused_and_left_alone(tmp_path):
    with pytest.raises(InputError, match="adapter_config"):
        export_lora(tmp_path, tmp_path / "out")
    saved(tmp_path / "own", configs()["alike"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.txt"):
        export_lora(tmp_path / "own", tmp_path / "out")
    (tmp_path / "own" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(InputError, match="IA3"):
        export_lora(tmp_path / "own", tmp_path / "else")


def test_the_command_says_what_it_did(layerif, tmp_path):
    saved(tmp_path / "own", configs()["one alpha"])
    status, printed, _ = layerif("export", "lora", tmp_path / "own", "--out", tmp_path / "out")
    assert status == 0
    assert "rank 1 to 4" in printed
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
