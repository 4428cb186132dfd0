"""Searches on mixtures of experts: slopes against losses measured again, totals, the model left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import layerif
from helpers.marginal_models import corpus
from helpers.mixtures import MIXTURES, experts, idle, mixture, own_part
from helpers.tiny import tiny_tokenizer
from layerif.compress.pruning.compressor import PruningCompressor
from layerif.compress.pruning.options import MethodOptions
from layerif.data.batching import collate, pack
from layerif.data.chunks import cut, draw
from layerif.model.layers import find_decoder_layers
from layerif.search.options import SearchOptions
from layerif.search.slopes import mean_loss, slopes
from layerif.search.sparsity import SparsityKind

SEARCH = {"calibration_samples": 4, "context_length": 32, "batch_tokens": 128}
BUDGET = {
    "marginal": {"rounds": 1, "tokens": 64, "held_out_tokens": 64},
    "evolution": {"offspring": 3, "stages": ("64:2",), "held_out_tokens": 64, "evaluations": 9},
}


def chunks(count, seed=0):
    return draw(cut(tiny_tokenizer(), corpus().text("calibration"), 32), count, seed)


def held(model, method):
    batches = [collate(items, device=model.device).inputs for items in pack(chunks(8), 128)]
    return PruningCompressor.held(
        model, find_decoder_layers(model), batches, MethodOptions(method=method)
    )


def loss_and_routes(model, layers, items):
    """The loss, and which experts every token was sent to."""
    routes, hooks = [], []
    for owner in {
        id(o): o for _, p, _ in experts(layers.projections) for o in [p.module.owner]
    }.values():
        hook = owner.register_forward_pre_hook(lambda _module, args: routes.append(args[1].clone()))
        hooks.append(hook)
    loss = mean_loss(model, items, batch_tokens=10_000)
    for hook in hooks:
        hook.remove()
    return loss, torch.cat([chosen.flatten() for chosen in routes])


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("name", MIXTURES)
def test_slopes_are_differences_of_the_loss_at_each_expert(name, method):
    """A little of the change either way, where no token changes its expert."""
    model = mixture(name)
    layers = find_decoder_layers(model)
    items = chunks(2, seed=4)
    kind = SparsityKind.among(layers, 0.5, SearchOptions())
    state = kind.start()
    around = kind.around(state)
    with held(model, method) as compressor:
        changes = compressor.at(kind.levels(state), lambda row, unit: unit.change(*around[row]))
        found = slopes(model, changes, items, batch_tokens=10_000)
        rows = [row for row, p, _ in experts(layers.projections) if p.layer == 2]
        compared = 0
        for row in [*rows[::3], 0]:
            projection, change = layers.projections[row], changes[row]()
            weight = own_part(projection, projection.parameter.data)
            before, step = weight.clone(), 2e-3
            weight.copy_(before + step * change)
            higher, one = loss_and_routes(model, layers, items)
            weight.copy_(before - step * change)
            lower, other = loss_and_routes(model, layers, items)
            weight.copy_(before)
            if torch.equal(one, other):
                real = (higher - lower) / (2 * step)
                assert found[row] == pytest.approx(real, rel=0.02, abs=2e-4), projection.key
                compared += 1
        assert compared > 1
    assert not found[idle(layers.projections)].any()


@pytest.mark.parametrize("strategy", ["marginal", "evolution"])
@pytest.mark.parametrize("granularity", ["projection", "layer"])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_plan_names_every_expert_has_the_total_and_leaves_the_model(name, strategy, granularity):
    model = mixture(name, torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = layerif.search_plan(
        model,
        0.6,
        tokenizer=tiny_tokenizer(),
        calibration=corpus(),
        strategy=strategy,
        granularity=granularity,
        **SEARCH,
        **BUDGET[strategy],
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    layers = find_decoder_layers(model)
    assert [m.module for m in plan.modules] == [p.key for p in layers.projections]
    assert [m.numel for m in plan.modules] == [p.numel for p in layers.projections]
    size = sum(p.numel for p in layers.projections)
    zeros = sum(m.sparsity * m.numel for m in plan.modules)
    assert zeros == pytest.approx(0.6 * size, abs=0.5)
    if granularity == "layer":
        own = {m.module.split(".")[1]: m.sparsity for m in plan.modules}
        assert all(m.sparsity == own[m.module.split(".")[1]] for m in plan.modules)
    if strategy == "evolution":
        assert np.all(np.diff([entry["loss"] for entry in plan.how["trace"]]) <= 0)
    manifest = layerif.prune(
        model,
        plan,
        tokenizer=tiny_tokenizer(),
        calibration=corpus(),
        calibration_samples=4,
        context_length=32,
    )
    for entry, module in zip(manifest.modules, plan.modules, strict=True):
        assert abs(entry.zeros - module.sparsity * module.numel) <= 0.5 + 1e-6
