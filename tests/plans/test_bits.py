"""Plans of bits: the knapsack against every combination, maps, and files."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import layerif
from layerif.artifacts import ModuleLevel, Plan
from layerif.errors import InputError
from layerif.plans.maps.bits import LEVELS, nearest_bits
from layerif.plans.maps.fused import fused_group
from layerif.plans.maps.knapsack import knapsack


def cheapest(losses, costs, budget):
    """The least sum of losses over every combination of levels within the budget."""
    found = np.inf
    for levels in product(range(losses.shape[1]), repeat=len(losses)):
        places = (range(len(losses)), levels)
        if costs[places].sum() <= budget:
            found = min(found, losses[places].sum())
    return found


@pytest.mark.parametrize("seed", range(20))
def test_no_combination_within_the_budget_is_better(seed):
    generator = np.random.default_rng(seed)
    losses = generator.normal(size=(5, 4))
    costs = generator.integers(1, 30, size=(5, 4)) * 7
    budget = int(generator.integers(costs.min(1).sum(), costs.max(1).sum() + 8))
    levels = knapsack(losses, costs, budget)
    chosen = (range(5), levels)
    assert costs[chosen].sum() <= budget
    assert losses[chosen].sum() == pytest.approx(cheapest(losses, costs, budget))


def test_costs_of_any_size_never_exceed_the_budget():
    generator = np.random.default_rng(0)
    costs = np.sort(generator.integers(10**8, 10**9, size=(40, 5)), axis=1)
    losses = -np.log(costs) * generator.uniform(1, 2, size=(40, 1))
    budget = int(costs.mean(1).sum())
    spent = int(costs[np.arange(40), knapsack(losses, costs, budget)].sum())
    assert budget * 0.999 < spent <= budget


def test_a_budget_below_the_cheapest_levels_is_refused():
    with pytest.raises(InputError, match="budget"):
        knapsack([[1.0, 0.0]], [[10, 20]], 9)


@pytest.mark.parametrize("total", [2, 2.9, 3, 3.2, 7.5, 16])
def test_bits_lie_next_to_what_is_wanted_and_within_the_total(total):
    sizes = np.array([192, 576, 576, 1536, 192])
    bits = nearest_bits(np.full(5, total), total, sizes)
    assert set(bits.tolist()) <= set(LEVELS)
    assert (bits * sizes).sum() <= total * sizes.sum() < ((bits + 8) * sizes).sum()
    if total in LEVELS:
        assert bits.tolist() == [total] * 5


def test_high_scores_get_more_bits():
    plan = layerif.allocate([0.0, 1.0, 2.0, 3.0], "bits", 4, spread=2)
    assert plan.allocation == [2, 3, 5, 6]
    assert layerif.allocate([3, 2, 1, 0], "bits", 4, spread=2, orientation="inverse") == (
        plan.model_copy(update={"how": {**plan.how, "orientation": "inverse"}})
    )
    assert layerif.allocate([0.0] * 4, "bits", 3.5, map="uniform").realised_total == 3.5


def test_a_plan_by_projections_is_saved_and_read(tmp_path):
    modules = [
        ModuleLevel(module="layers.0.self_attn.q_proj", level=2, numel=100),
        ModuleLevel(module="layers.0.mlp.up_proj", level=4, numel=300),
        ModuleLevel(module="layers.1.mlp.up_proj", level=3, numel=400),
    ]
    plan = Plan.of_modules(modules, kind="bits", total=3.3)
    assert plan.allocation == [3.5, 3]
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.level_of("layers.0.mlp.up_proj") == 4


@pytest.mark.parametrize("level", [1, 2.5, 9, 17])
def test_levels_that_nothing_stores_are_refused(level):
    with pytest.raises(ValueError, match="layer 1"):
        Plan(kind="bits", allocation=[4, level])


def test_a_total_may_be_missed_from_below_alone():
    assert Plan(kind="bits", allocation=[4, 3], total=3.6).total == 3.6
    with pytest.raises(ValueError, match="total"):
        Plan(kind="bits", allocation=[4, 3], total=3.4)


def test_engines_fuse_projections_of_one_block():
    assert fused_group("layers.3.self_attn.k_proj") == "layers.3.self_attn.qkv_proj"
    assert fused_group("layers.3.mlp.up_proj") == fused_group("layers.3.mlp.gate_proj")
    assert fused_group("layers.3.mlp.down_proj") == "layers.3.mlp.down_proj"
