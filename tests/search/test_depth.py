"""Searches for layers to drop: exact totals, what each strategy goes by, resumed to the bit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import layerif
from helpers.architectures import tiny_architecture
from helpers.marginal_models import corpus
from helpers.searching import same, states
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import Plan
from layerif.compress.depth.skipping import Skipping
from layerif.compress.depth.units import find_units
from layerif.core.checkpoint import NO_STEPS
from layerif.data.batching import Encoded
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.search.depth import search_depth
from layerif.search.depth_options import DEPTH_STRATEGIES, DepthSearchOptions
from layerif.search.depth_strategies import DepthSearch, angular_distances, lowest
from layerif.search.slopes import mean_loss

SMALL = {"tokens": 256, "trial_tokens": 128, "context_length": 32, "held_out_tokens": 256}


def search(model, drop=1, **options):
    words = {"tokenizer": tiny_tokenizer(), "calibration": corpus(), **SMALL, **options}
    return layerif.search_plan(model, drop, kind="depth", **words)


@pytest.fixture
def model():
    return tiny_architecture("llama")


@pytest.mark.parametrize("strategy", DEPTH_STRATEGIES.names())
def test_every_strategy_keeps_the_total_and_the_model(model, strategy, tmp_path):
    before, attributes = states(model), [dict(vars(m)) for m in model.modules()]
    plan = search(model, 2, strategy=strategy)
    assert sorted(plan.allocation) == [0, 0, 1, 1]
    assert plan.total == 2
    assert {f"layers.{i}" for i, n in enumerate(plan.allocation) if not n} == {*plan.how["dropped"]}
    assert plan.how["map"] == strategy
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert same(before, states(model))
    for module, found in zip(model.modules(), attributes, strict=True):
        assert vars(module).keys() == found.keys()


@pytest.mark.parametrize("name", ["llama", "rwkv", "gpt2"])
def test_greedy_drops_what_the_loss_misses_least(name):
    model = tiny_architecture(name)
    layers = find_decoder_layers(model)
    units = find_units(layers, "layer")
    skipping = Skipping(model, layers, units)
    plan = search(model, 3, strategy="greedy", trial_tokens=256, batch_tokens=64)
    items, dropped = read_texts(256), []
    for step in plan.how["trace"]:
        left = [unit for unit in units if unit not in dropped]
        found = []
        for unit in left:
            with skipping.without([*dropped, unit]):
                found.append(mean_loss(model, items, batch_tokens=64))
        best = int(np.argmin(found))
        assert step["dropped"] == left[best].key
        assert step["loss"] == step["tried"][left[best].key]
        assert [*step["tried"]] == [unit.key for unit in left]
        assert [*step["tried"].values()] == pytest.approx(found, rel=1e-6)
        dropped.append(left[best])
    assert plan.how["trials"] == 4 + 3 + 2
    assert plan.how["backward_tokens"] == 0


def read_texts(tokens):
    from layerif.search.texts import texts_for, up_to

    reading = DepthSearchOptions(context_length=32, held_out_tokens=256)
    found = texts_for(tiny_model(), tiny_tokenizer(), corpus(), None, reading)
    return up_to(found.pool, tokens)


def test_a_shortlist_of_all_is_greedy_and_one_of_few_measures_few():
    model = tiny_architecture("gemma3_text")
    exact = search(model, 2, strategy="greedy")
    every = search(model, 2, candidates=4)
    assert every.how["dropped"] == exact.how["dropped"]
    few = search(model, 2, candidates=1)
    assert len(few.how["trace"][0]["tried"]) <= 2
    assert few.how["backward_tokens"] == 2 * 256


def test_the_best_that_a_step_left_is_measured_in_the_next(monkeypatch):
    """Though both scores name others by then."""
    named = iter([(0, 1), (2, 3)])

    def answers(_search, _dropped):
        scores = np.full(4, 2.0)
        scores[[*next(named)]] = 1.0
        return SimpleNamespace(cost=scores, influence=scores)

    monkeypatch.setattr(DepthSearch, "answers", answers)
    first, second = search(tiny_architecture("llama"), 2, candidates=2).how["trace"]
    assert {*first["tried"]} == {"layers.0", "layers.1"}
    left = {*first["tried"]} - {first["dropped"]}
    assert {*second["tried"]} == {"layers.2", "layers.3"} | left


def test_held_out_losses_are_those_of_the_models(model):
    plan = search(model, strategy="quadratic")
    layers = find_decoder_layers(model)
    units = find_units(layers, "layer")
    gone = [unit for unit, kept in zip(units, plan.allocation, strict=True) if not kept]
    with Skipping(model, layers, units).without(gone):
        again = search(model, strategy="random", seed=0)
    assert plan.how["held_out_loss"] == pytest.approx(again.how["dense_held_out_loss"], rel=1e-6)
    assert plan.how["held_out_loss"] != plan.how["dense_held_out_loss"]


def test_by_sublayers_the_plan_says_which_and_what_share_is_left(model):
    plan = search(model, 3, unit="sublayer")
    assert plan.modules is not None
    assert sum(m.level == 0 for m in plan.modules) == 3
    assert {m.module for m in plan.modules if not m.level} == {*plan.how["dropped"]}
    sizes = find_decoder_layers(model).sizes
    left = [sum(m.numel * m.level for m in plan.modules if m.layer == i) for i in range(4)]
    np.testing.assert_allclose(plan.allocation, left / sizes)
    assert plan.total == pytest.approx(sum(plan.allocation), abs=1e-6)


class Kept:
    """Steps in memory; the work is stopped after so many."""

    def __init__(self, most):
        self.found, self.most = {}, most

    def load(self, name):
        return self.found.get(name)

    def save(self, name, tensors):
        self.found[name] = tensors
        self.most -= 1
        if not self.most:
            raise KeyboardInterrupt


@pytest.mark.parametrize("strategy", ["shortlist", "greedy"])
def test_a_search_cut_short_goes_on(model, strategy):
    def run(steps):
        return search_depth(
            model,
            2,
            tokenizer=tiny_tokenizer(),
            calibration=corpus(),
            strategy=strategy,
            steps=steps,
            **SMALL,
        )

    whole, steps = run(NO_STEPS), Kept(1)
    with pytest.raises(KeyboardInterrupt):
        run(steps)
    steps.most = 10
    again = run(steps)
    assert again.allocation == whole.allocation
    for name in ("dropped", "forward_tokens", "backward_tokens", "trials", "held_out_loss"):
        assert again.how[name] == whole.how[name]


def test_angles_are_those_of_the_hidden_states(model):
    layers = find_decoder_layers(model)
    skipping = Skipping(model, layers, find_units(layers, "layer"))
    items = [Encoded(0, list(range(3, 20)), 1), Encoded(1, list(range(40, 49)), 1)]
    found = angular_distances(skipping, items, 2, batch_tokens=64)
    sums, streams = np.zeros(3), []
    hooks = [
        layer.register_forward_hook(lambda _m, args, out: streams.extend([args[0], out]))
        for layer in layers.modules
    ]
    for item in items:
        streams.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([item.input_ids]), use_cache=False)
        places = [*streams[::2], streams[-1]]
        for first in range(3):
            x, y = (places[first + by][0].double().numpy() for by in (0, 2))
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            sums[first] += np.arccos(np.clip((x * y).sum(1) / norms, -1, 1)).sum() / np.pi
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(found, sums / 26, rtol=1e-5)
    assert lowest(np.array([np.nan, 2.0, 1.0, 1.0]), 3) == [2, 3, 1]


def test_a_task_can_be_the_target(model):
    target = layerif.load_task("agreement")
    plan = search(model, target=target, strategy="quadratic", context_length=160)
    assert plan.how["target"]["name"] == "agreement"


@pytest.mark.parametrize(
    ("name", "word"), [("gemma3n_text", "num_kv_shared_layers"), ("zamba", "layers share")]
)
def test_layers_that_depend_on_each_other_are_refused_by_name(name, word):
    with pytest.raises(InputError, match=word):
        search(tiny_architecture(name))


def test_what_cannot_be_asked_for_is_refused(model):
    for drop in (0, 4, 1.5, -1):
        with pytest.raises(InputError, match="cannot be dropped"):
            search(model, drop)
    with pytest.raises(InputError, match="contiguous"):
        search(model, strategy="contiguous", unit="sublayer")
    with pytest.raises(InputError, match="depth strategy"):
        search(model, strategy="best")
