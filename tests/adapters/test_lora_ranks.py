"""Plans of ranks as PEFT's LoRA, and the trainable parameters of plans, on real architectures."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.tiny import ARCHITECTURES, CONFIGS, LAYERS, SHAPE, tiny_model, vision_model
from layerif.adapters import (
    LoraMoeConfig,
    lora_config_for,
    trainable_parameters,
    trained_beside_lora,
)
from layerif.artifacts import Plan
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.plans.maps.counts import equal_rank

RANKS = [1, 3, 4]
PLAN = Plan(kind="ranks", allocation=RANKS, total=8)
EXPERTS = Plan(kind="experts", allocation=[1, 3, 4], total=8)


def ranked(model, plan=PLAN, **options):
    """The model with a LoRA of the plan; PEFT's warnings are errors."""
    with warnings.catch_warnings():
        for kind in (UserWarning, RuntimeWarning):
            warnings.simplefilter("error", kind)
        return get_peft_model(model, lora_config_for(plan, model, **options))


def wrappers(model):
    """PEFT's LoRA modules by their paths in the model that they are in."""
    found = model.get_base_model().named_modules()
    return {path: module for path, module in found if hasattr(module, "lora_A")}


def trained(model):
    """Trainable parameters of each decoder layer, counted, and that there are no others."""
    layers = find_decoder_layers(model)
    counted = [
        sum(p.numel() for p in layer.parameters() if p.requires_grad) for layer in layers.modules
    ]
    assert sum(counted) == model.get_nb_trainable_parameters()[0]
    return counted


def skeleton(architecture):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[architecture])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_projection_of_a_layer_has_its_rank(architecture):
    # Would see: a rank looked up by a name that fits other layers, GPT-2's transposed maps left
    # out, the language-model head taken along.
    model = tiny_model(architecture)
    projections = find_decoder_layers(model).projections
    expected = trainable_parameters(PLAN, skeleton(architecture))
    model = ranked(model)
    found = list(wrappers(model).values())
    assert [w.get_base_layer() for w in found] == [p.module for p in projections]
    for wrapper, projection in zip(found, projections, strict=True):
        assert wrapper.r == {"default": RANKS[projection.layer]}
        assert wrapper.scaling == {"default": 2.0}
        assert wrapper.lora_A["default"].weight.shape[0] == RANKS[projection.layer]
    assert trained(model) == expected.tolist()
    tokens = torch.randint(3, 250, (2, 9))
    model(tokens, labels=tokens).loss.backward()
    assert all(w.lora_B["default"].weight.grad.any() for w in found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_parameters_of_experts_and_routers_are_foretold(architecture):
    # Would see: a router counted where there is one expert, or on the side of the outputs.
    expected = trainable_parameters(EXPERTS, skeleton(architecture), rank=2)
    model = get_peft_model(tiny_model(architecture), LoraMoeConfig.for_plan(EXPERTS, r=2))
    assert trained(model) == expected.tolist()


def test_the_parameters_of_some_targets_and_ranks_of_each_layer():
    targets = ["self_attn.q_proj", "down_proj"]
    config = LoraMoeConfig.for_plan(EXPERTS, r=[2, 4, 1], target_modules=targets)
    expected = trainable_parameters(EXPERTS, tiny_model(), rank=[2, 4, 1], target_modules=targets)
    assert trained(get_peft_model(tiny_model(), config)) == expected.tolist()
    for chosen in (targets, r".*\.(q_proj|down_proj)"):
        model = ranked(tiny_model(), target_modules=chosen)
        expected = trainable_parameters(PLAN, tiny_model(), target_modules=chosen)
        assert trained(model) == expected.tolist()
        assert len(wrappers(model)) == 2 * LAYERS
    # Those of a layer alone: the others are left as they are.
    model = ranked(tiny_model(), target_modules=r"model\.layers\.1\..*_proj")
    assert trained(model)[::2] == [0, 0]
    assert {w.r["default"] for w in wrappers(model).values()} == {3}


def test_layer_1_is_not_layer_11():
    # Would see: a key such as `layers.1` without its dot, or a `.` that stands for any character.
    config = LlamaConfig(**(SHAPE | {"num_hidden_layers": 12}))
    model = AutoModelForCausalLM.from_config(config)
    ranks = list(range(12, 0, -1))
    plan = Plan(kind="ranks", allocation=ranks)
    model = ranked(model, plan, alpha_per_rank=0.5)
    for path, wrapper in wrappers(model).items():
        layer = int(path.split(".")[2])
        assert wrapper.r == {"default": ranks[layer]}
        assert wrapper.scaling == {"default": 0.5}
    assert len(wrappers(model)) == 7 * 12


def test_one_alpha_for_all_layers_where_asked():
    model = ranked(tiny_model(), lora_alpha=12, lora_dropout=0.1, use_dora=False)
    for path, wrapper in wrappers(model).items():
        rank = RANKS[int(path.split(".")[2])]
        assert wrapper.scaling == {"default": 12 / rank}
        assert wrapper.lora_dropout["default"].p == 0.1


def test_ranks_survive_a_file(tmp_path):
    torch.manual_seed(0)
    model = ranked(tiny_model("gpt2"))
    for wrapper in wrappers(model).values():
        torch.nn.init.normal_(wrapper.lora_B["default"].weight)
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("gpt2"), tmp_path).eval()
    tokens = torch.randint(3, 250, (2, 9))
    assert torch.equal(model(tokens).logits, again(tokens).logits)
    assert [w.r for w in wrappers(again).values()] == [w.r for w in wrappers(model).values()]


def test_a_vision_tower_is_left_alone():
    # Would see: targets by the ends of names, which the tower's projections have as well.
    seeing = vision_model()
    layers = find_decoder_layers(seeing)
    plan = Plan(kind="ranks", allocation=[2] * len(layers))
    expected = trainable_parameters(plan, seeing)
    model = ranked(seeing, plan)
    assert all(path.startswith(f"{layers.path}.") for path in wrappers(model))
    assert trained(model) == expected.tolist()
    model.unload()


def test_a_plan_beside_plain_lora_of_equal_total_rank():
    found = trained_beside_lora(EXPERTS, skeleton("llama"), rank=6)
    uniform = equal_rank([1, 3, 4], 6)
    lora = LoraConfig(r=uniform, target_modules="all-linear")
    plain = get_peft_model(tiny_model(), lora)
    mixed = get_peft_model(tiny_model(), LoraMoeConfig.for_plan(EXPERTS, r=6))
    assert found == {
        "rank": 6,
        "parameters": mixed.get_nb_trainable_parameters()[0],
        "by_layer": trained(mixed),
        "plain_lora": {"rank": 16, "parameters": plain.get_nb_trainable_parameters()[0]},
    }
    # The same ranks in all, and the layers are alike: what is left between them are the routers.
    assert found["parameters"] - found["plain_lora"]["parameters"] == 7 * (6 * 32 + 48)
    ranks = trained_beside_lora(PLAN, skeleton("llama"))
    assert ranks["plain_lora"]["rank"] == 3  # of 8 / 3
    assert ranks["rank"] is None


# The key projection is 16 x 32.
RANKS_ABOVE = Plan(kind="ranks", allocation=[16, 17, 16])


@pytest.mark.parametrize(
    ("plan", "options", "says"),
    [
        (EXPERTS, {}, "plan of ranks"),
        (Plan(kind="ranks", allocation=[1, 2]), {}, "2 layers"),
        (PLAN, {"alpha_per_rank": 0}, "alpha_per_rank"),
        (PLAN, {"lora_alpha": float("inf")}, "lora_alpha"),
        (PLAN, {"target_modules": ["q_proj", "proj"]}, "'proj'; .*mlp.down_proj, "),
        (PLAN, {"target_modules": ["lm_head"]}, "called 'lm_head'"),
        (PLAN, {"target_modules": "q_proj"}, "called 'q_proj'"),
        (PLAN, {"target_modules": "("}, "regular expression"),
        (PLAN, {"target_modules": "((.*)*)*#"}, "seconds"),
        (RANKS_ABOVE, {}, "at most 16"),
    ],
)
def test_what_cannot_be_is_refused(plan, options, says, monkeypatch):
    monkeypatch.setattr("layerif.core.files.patterns.SECONDS", 0.5)
    with pytest.raises(InputError, match=says):
        lora_config_for(plan, tiny_model(), **options)


def test_a_plan_of_sparsity_trains_nothing():
    plan = Plan(kind="sparsity", allocation=[0.5] * 3)
    with pytest.raises(InputError, match="experts"):
        trainable_parameters(plan, tiny_model())
