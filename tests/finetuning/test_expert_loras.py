"""LoRA beside the experts of a mixture, by PEFT's `target_parameters`."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

import layerif
from helpers.architectures import tiny_architecture
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.adapters import lora_config_for, trainable_parameters
from layerif.artifacts import Plan
from layerif.data import Example
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model

PLAN = Plan(kind="ranks", allocation=[1, 2, 3, 2])
IDS = torch.arange(3, 27)[None]


def with_experts(model):
    wrapped = get_peft_model(model, lora_config_for(PLAN, model, adapt_experts=True)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return wrapped


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "qwen3_next", "granitemoehybrid"])
def test_it_is_opened_again_and_merged(name, tmp_path):
    tiny_architecture(name).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, _ = open_model(tmp_path, device="cpu")
    bare = logits(model)
    wrapped = with_experts(model)
    found = logits(wrapped)
    assert not torch.allclose(found, bare, atol=1e-3)
    wrapped.save_pretrained(tmp_path / "adapter")
    again, _ = open_model(tmp_path, device="cpu", adapter=tmp_path / "adapter")
    assert torch.equal(logits(again), found)
    assert torch.allclose(logits(again.merge_and_unload()), found, atol=1e-4)


def test_each_expert_has_the_rank_of_its_layer():
    wrapped = with_experts(tiny_architecture("mixtral"))
    for name, parameter in wrapped.named_parameters():
        if "experts" in name and "lora_A" in name:
            layer = int(name.split("layers.")[1].split(".")[0])
            assert parameter.shape[0] == 4 * PLAN.allocation[layer]


def test_experts_with_adapters_keep_their_names_and_are_not_scored():
    model = tiny_architecture("mixtral")
    names = [p.key for p in find_decoder_layers(model).projections]
    wrapped = with_experts(model)
    assert [p.key for p in find_decoder_layers(wrapped).projections] == names
    rows = [Example(prompt="one", completion=" two"), Example(prompt="three", completion=" four")]
    with pytest.raises(InputError, match="merge"):
        layerif.score(wrapped, tiny_tokenizer(), rows, rows, rank=2)


def test_without_experts_there_is_nothing_to_adapt():
    model = tiny_model("llama")
    with pytest.raises(InputError, match="adapt_experts"):
        lora_config_for(Plan(kind="ranks", allocation=[1, 1, 1]), model, adapt_experts=True)


def test_it_is_said_where_there_is_no_lora_whatever_is_targeted(capsys):
    model = tiny_architecture("mixtral")
    projections = find_decoder_layers(model).projections
    experts = sum(p.fused is not None for p in projections)
    for targets in (None, ["q_proj"]):
        lora_config_for(PLAN, model, target_modules=targets)
        said = " ".join(capsys.readouterr().err.split())
        assert f"no LoRA at {experts} of {len(projections)} projections: mlp.experts." in said
    lora_config_for(PLAN, model, adapt_experts=True)
    assert "no LoRA" not in capsys.readouterr().err


def test_fine_tuning_trains_them():
    model = tiny_architecture("mixtral")
    rows = [Example(prompt=f"{i} and", completion=f" {i + 1}") for i in range(6)]
    options = {"rank": 2, "max_steps": 2, "batch_tokens": 64}
    plain = layerif.finetune(tiny_architecture("mixtral"), tiny_tokenizer(), rows, **options)
    every = layerif.finetune(model, tiny_tokenizer(), rows, adapt_experts=True, **options)
    assert every[1].trainable_parameters > plain[1].trainable_parameters


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "granitemoehybrid"])
def test_what_is_trained_is_counted_as_peft_counts_it(name):
    for more in (
        {},
        {"adapt_experts": True},
        {"adapt_experts": True, "target_modules": ["o_proj"]},
    ):
        model = tiny_architecture(name)
        counted = trainable_parameters(PLAN, model, **more)
        wrapped = get_peft_model(model, lora_config_for(PLAN, model, **more))
        assert counted.sum() == wrapped.get_nb_trainable_parameters()[0]
        by_layer = [0] * len(counted)
        for path, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                by_layer[int(path.split("layers.")[1].split(".")[0])] += parameter.numel()
        assert counted.tolist() == by_layer
    for wrong in (Plan(kind="experts", allocation=[2] * 4), Plan(kind="ranks", allocation=[1] * 3)):
        with pytest.raises(InputError, match=r"ranks|layers"):
            trainable_parameters(wrong, tiny_architecture(name), adapt_experts=True)
    with pytest.raises(InputError, match="adapt_experts"):
        trainable_parameters(
            Plan(kind="ranks", allocation=[1] * 3), tiny_model(), adapt_experts=True
        )


def test_a_plan_of_lora_experts_does_not_reach_the_models_own():
    model, plan = tiny_architecture("mixtral"), Plan(kind="experts", allocation=[2] * 4)
    rows = [Example(prompt="one", completion=" two")] * 4
    with pytest.raises(InputError, match="adapt_experts"):
        layerif.finetune(model, tiny_tokenizer(), rows, plan=plan, adapt_experts=True)


def test_a_rank_above_the_smaller_side_of_experts_is_refused():
    model, plan = tiny_architecture("qwen3_next"), Plan(kind="ranks", allocation=[17] * 4)
    lora_config_for(plan, model, target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"experts\.down_proj"):
        lora_config_for(plan, model, target_modules=["q_proj"], adapt_experts=True)


def test_dropout_beside_experts_is_refused_by_name():
    model = tiny_architecture("mixtral")
    plan = Plan(kind="ranks", allocation=[2] * 4)
    with pytest.raises(InputError, match=r"adapt_experts.*lora_dropout is 0\.1"):
        lora_config_for(plan, model, adapt_experts=True, lora_dropout=0.1)
