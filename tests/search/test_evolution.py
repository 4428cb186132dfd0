"""The evolutionary search: exact totals, no round that makes things worse, the loss of its plan."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from helpers.marginal_models import corpus, trained_model
from helpers.scoring import WANTED
from helpers.searching import SEARCH, same, states
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.compress.pruning.compressor import PruningCompressor
from layerif.compress.pruning.options import MethodOptions
from layerif.core.checkpoint import Steps, resumable
from layerif.data.batching import collate, pack
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.search.options import SearchOptions
from layerif.search.searching import search_plan
from layerif.search.slopes import mean_loss
from layerif.search.sparsity import SparsityKind
from layerif.search.texts import texts_for


def searched(model, sparsity=0.5, **options):
    defaults = {"offspring": 6, "stages": ("128:3",), "held_out_tokens": 512, "step": 0.05}
    return search_plan(
        model,
        sparsity,
        tokenizer=tiny_tokenizer(),
        calibration=corpus(),
        strategy="evolution",
        **(defaults | SEARCH | options),
    )


def test_moves_keep_the_exact_number_of_zeros_and_the_bounds():
    units = SparsityKind(np.arange(4), np.array([97, 1000, 313, 1000]), 0.5, 0.25, 0.7, step=0.05)
    state = units.whole(units.start())
    total = round(0.5 * 2410)
    assert sum(units.levels(state)) == total
    assert np.abs(units.levels(state) - 0.5 * units.sizes).max() < 1
    generator = np.random.default_rng(0)
    for _ in range(500):
        changed = units.mutated(state, generator)
        if changed is None:
            continue
        assert sum(units.levels(changed)) == total
        np.testing.assert_array_equal(units.levels(changed) / units.sizes, changed)
        assert (changed >= 0.25 - 1 / 97).all()
        assert (changed <= 0.7 + 1 / 97).all()
        state = changed
    assert len(set(state.tolist())) > 2, "they went somewhere"
    alone = SparsityKind(np.arange(1), np.array([10]), 0.5, 0.0, 1.0, step=0.1)
    assert alone.mutated(alone.start(), generator) is None


def test_evolution_never_gets_worse_keeps_the_total_and_leaves_the_model():
    model = trained_model()
    before = states(model)
    found = searched(model, 0.6, evaluations=150)
    assert same(before, states(model))
    trace = found.how["trace"]
    losses = [entry["loss"] for entry in trace]
    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0]
    assert trace[-1]["evaluations"] <= 150
    zeros = [m.sparsity * m.numel for m in found.modules]
    np.testing.assert_allclose(zeros, np.round(zeros), atol=1e-6)
    total = sum(m.numel for m in found.modules)
    assert round(sum(zeros)) == round(0.6 * total)
    again = searched(model, 0.6, evaluations=150)
    assert again.modules == found.modules
    assert searched(model, 0.6, evaluations=150, seed=1).modules != found.modules


def test_the_last_loss_of_the_search_is_that_of_its_plan():
    """Applied from scratch: masks of the recorded counts, no search."""
    model = trained_model()
    found = searched(model, 0.6, evaluations=80)
    options = SearchOptions(**SEARCH, held_out_tokens=512)
    samples = options.calibration_samples
    texts = texts_for(model, tiny_tokenizer(), corpus(), None, options, samples)
    layers = find_decoder_layers(model)
    batches = [collate(g, device=model.device).inputs for g in pack(texts.calibration, 1024, model)]
    kind = SparsityKind.among(layers, 0.6, options)
    with PruningCompressor.held(
        model, layers, batches, MethodOptions(method="wanda")
    ) as compressor:
        orders = compressor.at(kind.levels(kind.start()), lambda _row, order: order)
        for row, module in enumerate(found.modules):
            compressor.set(row, orders[row].at(round(module.sparsity * module.numel)))
        loss = mean_loss(model, texts.held_out, batch_tokens=1024)
    assert loss == found.how["trace"][-1]["loss"]


@pytest.mark.parametrize("granularity", ["layer", "projection"])
@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_evolution_works_for_every_pruner_and_granularity(method, granularity):
    model = trained_model()
    before = states(model)
    plan = searched(model, 0.6, evaluations=30, method=method, granularity=granularity)
    assert same(before, states(model))
    losses = [entry["loss"] for entry in plan.how["trace"]]
    assert losses[-1] <= losses[0]
    assert plan.how["map"] == "evolution"
    total = sum(m.numel for m in plan.modules)
    zeros = math.fsum(m.sparsity * m.numel for m in plan.modules)
    assert zeros == pytest.approx(round(0.6 * total), abs=1e-6)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_cut_short_it_goes_on_to_the_same_bits(tmp_path, monkeypatch, method):
    model = trained_model()
    how = {"evaluations": 100, "method": method, "start": "uniform"}
    whole = searched(model, 0.6, **how)
    saved, save = [], Steps.save

    def cut_short(self, step, tensors):
        save(self, step, tensors)
        saved.append(step)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Steps, "save", cut_short)
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "plan", WANTED) as steps:
        searched(model, 0.6, **how, steps=steps)
    with resumable(tmp_path / "plan", WANTED) as steps:
        resumed = searched(model, 0.6, **how, steps=steps)
    assert resumed.modules == whole.modules
    traces = [[{**each, "seconds": 0} for each in p.how["trace"]] for p in (whole, resumed)]
    assert traces[0] == traces[1]
    assert len(saved) == len(traces[0]) - 1 > 4, "each generation but the first, once"


def test_a_limit_in_seconds_ends_the_search():
    plan = searched(trained_model(), seconds=1.0)
    assert 1.0 <= plan.how["seconds"] < 5.0
    assert plan.how["trace"][0]["generation"] == 0


def test_what_cannot_be_done_is_refused_before_any_weight_changes():
    model = tiny_model()
    before = states(model)
    for message, options in {
        "until a limit": {},
        "evaluations=0": {"evaluations": 0},
        "offspring=0": {"evaluations": 5, "offspring": 0},
        "'64'": {"evaluations": 5, "stages": ("64",)},
        r"step=0\.0": {"evaluations": 5, "step": 0.0},
    }.items():
        with pytest.raises(InputError, match=message):
            searched(model, **options)
    assert same(before, states(model))
