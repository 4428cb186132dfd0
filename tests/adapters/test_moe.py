"""Mixtures of LoRA experts: the layer against a loop over experts, and PEFT's ways with it."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from helpers.tiny import ARCHITECTURES, LAYERS, float64_tolerance, tiny_model
from layerif.adapters import LoraMoeConfig, LoraMoeLinear, batch_state
from layerif.artifacts import Plan
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers

EXPERTS = [1, 3, 4]
RAGGED = {"num_experts": EXPERTS, "top_k": [2, 2, 3], "r": [2, 3, 4], "lora_alpha": [4.0, 3.0, 8.0]}


def adapted(model, *, init_weights=False, name="default", **options):
    torch.manual_seed(7)
    config = LoraMoeConfig(init_weights=init_weights, **(RAGGED | options))
    return get_peft_model(model, config, adapter_name=name)


def moe_layers(model):
    return [module for module in model.modules() if isinstance(module, LoraMoeLinear)]


def by_loop(layer, x, name="default"):
    """The definition, expert by expert and token by token."""
    n, r, k = layer.experts[name], layer.rank[name], layer.top_k[name]
    up, down = layer.lora_moe_B[name], layer.lora_moe_A[name]
    flat = x.reshape(-1, x.shape[-1])
    rows = []
    for token in flat:
        if n > 1:
            logits = layer.lora_moe_router[name] @ token
            chances = torch.exp(logits - logits.max())
            chances = chances / chances.sum()
            best = sorted(range(n), key=lambda e: -chances[e].item())[:k]
            total = sum(chances[e] for e in best)
            weights = {e: chances[e] / total for e in best}
        else:
            weights = {0: 1.0}
        own = 0
        for e, weight in weights.items():
            part = slice(e * r, (e + 1) * r)
            own = own + weight * (up[:, part] @ (down[part] @ token))
        rows.append(own * layer.scaling[name])
    return layer.base_layer(x) + torch.stack(rows).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_the_layer_is_the_loop_over_experts_with_its_gradients(experts, top_k, kind):
    torch.manual_seed(0)
    base = (nn.Linear(6, 9) if kind == "linear" else Conv1D(9, 6)).double()
    config = LoraMoeConfig(
        num_experts=experts, top_k=top_k, r=3, lora_alpha=5.0, init_weights=False
    )
    layer = LoraMoeLinear(base, "default", config, 0)
    assert (layer.in_features, layer.out_features) == (6, 9)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    target = torch.randn(2, 4, 9, dtype=torch.float64)
    found, expected = layer(x), by_loop(layer, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    ours = torch.autograd.grad((found * target).sum(), wanted)
    theirs = torch.autograd.grad((expected * target).sum(), wanted)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_ragged_experts(architecture, monkeypatch):
    model = adapted(tiny_model(architecture, torch.float64))
    layers = moe_layers(model)
    projections = find_decoder_layers(model).projections
    assert len(layers) == len(projections)
    assert [layer.layer for layer in layers] == [p.layer for p in projections]
    assert {layer.layer: layer.experts["default"] for layer in layers} == dict(enumerate(EXPERTS))
    tokens = torch.randint(3, 250, (2, 9))
    found = model(tokens, labels=tokens)
    found.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    monkeypatch.setattr(LoraMoeLinear, "forward", by_loop)
    expected = model(tokens, labels=tokens)
    expected.loss.backward()
    tolerance = float64_tolerance(architecture)
    torch.testing.assert_close(found.logits, expected.logits, rtol=tolerance, atol=10 * tolerance)
    others = [p.grad for p in model.parameters() if p.requires_grad]
    for own, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=10 * tolerance)


def test_one_expert_is_plain_lora_to_the_bit():
    tokens = torch.randint(3, 250, (2, 9))
    torch.manual_seed(3)
    ours = get_peft_model(tiny_model(), LoraMoeConfig(num_experts=1, r=4, lora_alpha=8))
    theirs = get_peft_model(
        tiny_model(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    )
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    plain = [m for m in theirs.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    with torch.no_grad():
        for own, other in zip(moe_layers(ours), plain, strict=True):
            assert "default" not in own.lora_moe_router
            own.lora_moe_B["default"].normal_()
            other.lora_A["default"].weight.copy_(own.lora_moe_A["default"])
            other.lora_B["default"].weight.copy_(own.lora_moe_B["default"])
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_a_fresh_adapter_changes_nothing_and_a_disabled_one_neither():
    tokens = torch.randint(3, 250, (1, 9))
    dense = tiny_model()(tokens).logits
    fresh = adapted(tiny_model(), init_weights=True)
    assert torch.equal(fresh(tokens).logits, dense)
    trained = adapted(tiny_model())
    assert not torch.allclose(trained(tokens).logits, dense)
    with trained.disable_adapter():
        assert torch.equal(trained(tokens).logits, dense)
    assert torch.equal(trained.unload()(tokens).logits, dense)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_it_is_saved_and_read_again_with_its_shape(low_cpu_mem_usage, tmp_path):
    tokens = torch.randint(3, 250, (1, 9))
    model = adapted(tiny_model()).eval()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(
        tiny_model(), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage
    )
    config = again.peft_config["default"]
    assert isinstance(config, LoraMoeConfig)
    assert (config.num_experts, config.r) == (EXPERTS, RAGGED["r"])
    assert torch.equal(again.eval()(tokens).logits, model(tokens).logits)


def test_transformers_takes_it_by_add_adapter(tmp_path):
    tokens = torch.randint(3, 250, (1, 9))
    model = tiny_model()
    torch.manual_seed(7)
    model.add_adapter(LoraMoeConfig(init_weights=False, **RAGGED))
    assert torch.equal(model(tokens).logits, adapted(tiny_model())(tokens).logits)
    adapted(tiny_model()).save_pretrained(tmp_path)
    loaded = tiny_model()
    loaded.load_adapter(str(tmp_path))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_several_adapters_are_set_and_deleted():
    tokens = torch.randint(3, 250, (1, 9))
    model = adapted(tiny_model(), name="one")
    first = model(tokens).logits
    torch.manual_seed(8)
    model.add_adapter("two", LoraMoeConfig(num_experts=2, init_weights=False))
    assert torch.equal(model(tokens).logits, first)
    model.set_adapter("two")
    second = model(tokens).logits
    assert not torch.allclose(first, second)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".two" in name for name in trained)
    model.set_adapter("one")
    assert torch.equal(model(tokens).logits, first)
    model.delete_adapter("one")
    model.set_adapter("two")
    assert torch.equal(model(tokens).logits, second)


@pytest.mark.parametrize("way", ["unload", "merge_and_unload", "delete_adapter"])
def test_nothing_is_left_on_a_model_without_its_adapters(way):
    tokens = torch.randint(3, 250, (1, 9))
    before = adapted(tiny_model(), num_experts=1, name="one")
    before.add_adapter("two", LoraMoeConfig(num_experts=1))
    model = copy.deepcopy(before)
    assert len(model.get_base_model()._forward_pre_hooks) == 1, "one for both adapters"
    if way == "delete_adapter":
        model.delete_adapter("two")
        assert len(model.get_base_model()._forward_pre_hooks) == 1, "one is left to be told"
        model.delete_adapter("one")
        plain = model.base_model.model
    else:
        plain = getattr(model, way)()
    assert not plain._forward_pre_hooks
    assert len(before.get_base_model()._forward_pre_hooks) == 1, "a copy's is its own"
    assert torch.isfinite(plain(tokens).logits).all()


def test_an_adapter_after_the_last_was_deleted_is_told_of_padding_again():
    model = adapted(tiny_model(), name="one")
    model.delete_adapter("one")
    model.add_adapter("two", LoraMoeConfig(**RAGGED))
    model.set_adapter("two")
    tokens = torch.randint(3, 250, (2, 9))
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    model(input_ids=tokens, attention_mask=mask)
    assert torch.equal(batch_state(model).mask, mask.bool())


def test_generation_with_a_cache_is_that_without():
    model = adapted(tiny_model(dtype=torch.float64)).eval()
    tokens = torch.randint(3, 250, (2, 5))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with_cache, without = (
        model.generate(input_ids=tokens, use_cache=cached, **options) for cached in (True, False)
    )
    assert torch.equal(with_cache, without)
    assert with_cache.shape[1] > 5


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_merging_is_exact_with_one_expert_and_refused_with_more(architecture):
    tokens = torch.randint(3, 250, (1, 9))
    one = adapted(tiny_model(architecture, torch.float64), num_experts=1).eval()
    expected = one(tokens).logits
    before = copy.deepcopy(one)
    merged = one.merge_and_unload()
    assert not moe_layers(merged)
    tolerance = float64_tolerance(architecture)
    torch.testing.assert_close(merged(tokens).logits, expected, rtol=tolerance, atol=tolerance * 10)
    before.merge_adapter()
    before.unmerge_adapter()
    torch.testing.assert_close(before(tokens).logits, expected, rtol=tolerance, atol=1e-9)
    several = adapted(tiny_model(architecture))
    weights = [p.clone() for p in several.parameters()]
    with pytest.raises(InputError, match="token"):
        several.merge_and_unload()
    assert all(torch.equal(a, b) for a, b in zip(weights, several.parameters(), strict=True))


def test_routing_is_in_float32_whatever_the_dtype():
    model = adapted(tiny_model(dtype=torch.bfloat16))
    layer = next(m for m in moe_layers(model) if m.experts["default"] > 1)
    x = torch.randn(1, 50, layer.in_features, dtype=torch.bfloat16)
    from layerif.adapters.routing import gates, logits

    scores = logits(x, layer.lora_moe_router["default"])
    assert scores.dtype == gates(scores, 2)[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(x, layer.lora_moe_router["default"]), scores)
    assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("strict", [False, True])
def test_dropout_keeps_the_mean_and_strict_draws_a_mask_for_each_expert(strict):
    torch.manual_seed(0)
    config = LoraMoeConfig(
        num_experts=3, top_k=3, r=2, lora_dropout=0.4, strict_dropout=strict, init_weights=False
    )
    layer = LoraMoeLinear(nn.Linear(5, 4).double(), "default", config, 0)
    x = torch.randn(1, 1, 5, dtype=torch.float64)
    whole = layer.eval()._reduced(x, "default")
    layer.train()
    draws = torch.stack([layer._reduced(x, "default") for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), whole, rtol=0.1, atol=0.1)
    with torch.no_grad():
        layer.lora_moe_A["default"].copy_(layer.lora_moe_A["default"][:2].repeat(3, 1))
    alike = layer._reduced(x, "default").unflatten(-1, (3, 2))
    same = torch.allclose(alike[..., 0, :], alike[..., 1, :]) and torch.allclose(
        alike[..., 0, :], alike[..., 2, :]
    )
    assert same is not strict


def test_an_adapter_that_is_replaced_leaves_no_router():
    several, one = (LoraMoeConfig(num_experts=n, r=2) for n in (3, 1))
    layer = LoraMoeLinear(nn.Linear(5, 4), "default", several, 0)
    layer.update_layer("default", one)
    assert {name for name, _ in layer.named_parameters() if "lora_moe" in name} == {
        "lora_moe_A.default",
        "lora_moe_B.default",
    }


def test_a_plan_of_experts_becomes_a_configuration():
    plan = Plan(
        kind="experts", allocation=EXPERTS, total=8, layer_sizes=[1] * LAYERS, how={"map": "mola"}
    )
    config = LoraMoeConfig.for_plan(plan, r=4)
    assert config.num_experts == EXPERTS
    assert [config.of_layer(layer)[:3] for layer in range(3)] == [(1, 1, 4), (3, 2, 4), (4, 2, 4)]
    sparse = Plan(kind="sparsity", allocation=[0.5] * 3, total=0.5, layer_sizes=[1] * 3, how={})
    with pytest.raises(InputError, match="experts"):
        LoraMoeConfig.for_plan(sparse)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": [1, 2]}, "num_experts has 2"),
        ({"top_k": [1, 2, 3, 4]}, "top_k"),
        ({"num_experts": 0}, "num_experts"),
        ({"r": [1, 2, 0]}, "r must"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"bias": "all"}, "bias"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        get_peft_model(tiny_model(), LoraMoeConfig(**options))


def test_some_targets_alone():
    model = get_peft_model(
        tiny_model(), LoraMoeConfig(num_experts=2, target_modules=["q_proj", "v_proj"])
    )
    assert len(moe_layers(model)) == 2 * LAYERS


def test_importing_twice_changes_nothing():
    from peft import mapping

    from layerif.adapters.tuner import register

    register()
    assert mapping.PEFT_TYPE_TO_CONFIG_MAPPING["LORA_MOE"] is LoraMoeConfig
