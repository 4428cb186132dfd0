"""The load-balancing loss: its value, its gradient under every way of running, and diagnostics."""

from __future__ import annotations

import math

import pytest
import torch
from peft import get_peft_model
from torch import nn

from helpers.tiny import tiny_model
from layerif.adapters import LoraMoeConfig, LoraMoeLinear, routing
from layerif.adapters.balance import BatchState, balance_loss
from layerif.adapters.routing import gates
from layerif.artifacts import RouterLoad, RoutingUse
from layerif.errors import InputError
from layerif.report.routing import even_loads, plot_routing

COEFFICIENT = 0.3


def adapted(coefficient=COEFFICIENT, **options):
    torch.manual_seed(5)
    config = LoraMoeConfig(
        num_experts=[3, 1, 4],
        top_k=2,
        r=2,
        init_weights=False,
        aux_loss_coef=coefficient,
        **options,
    )
    model = get_peft_model(tiny_model(dtype=torch.float64), config).train()
    with torch.no_grad():  # no token is sure of its experts
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.2)
    return model


def batch(rows=4, length=7, padding=True):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, 250, (rows, length), generator=generator)
    mask = torch.ones_like(tokens)
    if padding:
        for row in range(rows):
            mask[row, length - row % 3 :] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def by_hand(model, inputs):
    """The loss of all routers, sequence by sequence, from the inputs that they get."""
    seen = []
    handles = [
        m.register_forward_pre_hook(lambda m, a: seen.append((m, a[0])))
        for m in model.modules()
        if isinstance(m, LoraMoeLinear) and m.experts["default"] > 1
    ]
    model(**inputs)
    for handle in handles:
        handle.remove()
    total = 0
    for layer, x in seen:
        n, k = layer.experts["default"], layer.top_k["default"]
        own = []
        for row, mask in zip(x, inputs["attention_mask"], strict=True):
            chances = (row[mask.bool()] @ layer.lora_moe_router["default"].T).softmax(-1)
            chosen = chances.topk(k, dim=-1).indices
            f = torch.bincount(chosen.flatten(), minlength=n).double() / chosen.numel()
            own.append(n * (f * chances.mean(0)).sum())
        total = total + torch.stack(own).mean()
    return total


def gradients(model):
    found = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return found


def same(ours, theirs):
    """But for rounding: Llama's norms are in float32 whatever the dtype."""
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def expected(inputs, rows=slice(None)):
    plain = adapted(0.0)
    part = {name: values[rows] for name, values in inputs.items()}
    loss = plain(**part).logits.square().mean() + COEFFICIENT * by_hand(plain, part)
    loss.backward()
    return gradients(plain)


@pytest.mark.parametrize("padding", [False, True])
def test_its_gradient_is_that_of_the_loss_added_by_hand(padding):
    inputs = batch(padding=padding)
    model = adapted()
    model(**inputs).logits.square().mean().backward()
    found = gradients(model)
    same(found, expected(inputs))
    without = adapted(0.0)
    without(**inputs).logits.square().mean().backward()
    assert not all(torch.allclose(a, b) for a, b in zip(found, gradients(without), strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_both_kinds_keeps_it(reentrant):
    inputs = batch()
    model = adapted()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model(**inputs).logits.square().mean().backward()
    same(gradients(model), expected(inputs))


def test_accumulated_batches_give_what_one_gives():
    inputs = batch()
    model = adapted()
    halves = [
        {name: values[part] for name, values in inputs.items()} for part in (slice(2), slice(2, 4))
    ]
    state = next(m.state for m in model.modules() if isinstance(m, LoraMoeLinear))
    state.scale = 0.5
    for half in halves:
        (model(**half).logits.square().mean() / 2).backward()
    same(gradients(model), expected(inputs))


def test_it_is_least_where_all_experts_get_the_same():
    even = torch.full((1, 8, 4), 0.25, dtype=torch.float64)
    assert balance_loss(even, gates(even, 4)[1], BatchState(), 4).item() == pytest.approx(1)
    one = torch.zeros(1, 8, 4, dtype=torch.float64)
    one[..., 2] = 1
    assert balance_loss(one, gates(one, 1)[1], BatchState(), 1).item() == pytest.approx(4)


def test_it_is_off_when_the_model_is_not_trained():
    model = adapted().eval()
    inputs = batch()
    model(**inputs).logits.square().mean().backward()
    plain = adapted(0.0).eval()
    plain(**inputs).logits.square().mean().backward()
    same(gradients(model), gradients(plain))


def test_diagnostics_count_what_routers_do():
    model, inputs = adapted().eval(), batch()
    with routing(model) as report:
        model(**inputs)
        model(**inputs)
    assert [router.module.layer for router in report.routers] == [0] * 7 + [2] * 7
    real = int(inputs["attention_mask"].sum())
    for router in report.routers:
        assert sum(router.counts) == 2 * 2 * real, "two runs, two experts a token, no padding"
        assert sum(router.load) == pytest.approx(1)
        assert 0 < router.entropy <= math.log(len(router.load))
    summary = report.summary()
    assert 0 <= summary["dead_experts"] < 1
    before = sum(report.routers[0].counts)
    model(**inputs)
    assert sum(report.routers[0].counts) == before, "nothing is observed outside"


def test_what_routers_did_is_saved_and_drawn(tmp_path):
    model, inputs = adapted().eval(), batch()
    with routing(model) as report:
        with pytest.raises(InputError, match="router"):
            report.use(model)
        model(**inputs)
    use = report.use(model)
    use.save(tmp_path / "routing.json")
    again = RoutingUse.load(tmp_path / "routing.json")
    assert again == use
    assert again.adapter == "default"
    assert [router.module for router in again.routers[:2]] == [
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.k_proj",
    ]
    for router, seen in zip(again.routers, report.routers, strict=True):
        assert router.load == pytest.approx(seen.load)
        assert router.entropy == pytest.approx(seen.entropy)
        assert (router.tokens, router.top_k) == (int(inputs["attention_mask"].sum()), 2)
    written = plot_routing(again, tmp_path / "routing")
    assert [path.name for path in written] == ["routing.png", "routing.svg"]
    assert all(path.stat().st_size > 5000 for path in written)


def test_the_picture_has_loads_from_the_busiest_on_and_holes_where_no_router_is():
    routers = [
        RouterLoad(module="layers.0.q", layer=0, top_k=1, tokens=8, counts=[2, 6], entropy=0.1),
        RouterLoad(module="layers.2.q", layer=2, top_k=2, tokens=3, counts=[3, 0, 3], entropy=0.2),
    ]
    found = even_loads(routers, 3, 3)
    assert found.filled(-1).tolist() == [[1.5, -1, 1.5], [0.5, -1, 1.5], [-1, -1, 0]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"counts": [1, 2]}, "counts"),
        ({"counts": [8]}, "two experts"),
        ({"entropy": 0.8}, "within 0 and ln 2"),
        ({"layer": 3}, "must be below 3"),
    ],
)
def test_a_routing_file_that_cannot_be_true_is_refused(changed, message):
    router = {"module": "q", "layer": 0, "top_k": 1, "tokens": 8, "counts": [2, 6], "entropy": 0.1}
    info = {"name": "m", "architecture": "a", "layers": 3, "layer_sizes": [1, 1, 1]}
    value = {"model": info, "adapter": "default", "routers": [router]}
    assert RoutingUse.parse(value, "here").routers[0].load == [0.25, 0.75]
    with pytest.raises(InputError, match=message):
        RoutingUse.parse(value | {"routers": [router | changed]}, "here")


def test_an_expert_that_nobody_is_sent_to_is_dead():
    layer = LoraMoeLinear(nn.Linear(4, 4), "default", LoraMoeConfig(num_experts=3, top_k=1), 0)
    with torch.no_grad():
        layer.lora_moe_router["default"].copy_(torch.eye(3, 4) * 9)
    with routing(layer) as report:
        layer(torch.eye(2, 4).unsqueeze(0))
    assert report.routers[0].dead == [2]
    assert report.routers[0].load == [0.5, 0.5, 0.0]
    assert report.summary()["dead_experts"] == pytest.approx(1 / 3)
