"""Plans by influence at the operating point, and searches of a user's own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from helpers.marginal_models import corpus, trained_model
from helpers.searching import OPTIONS, SEARCH, same, states
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import Plan
from layerif.compress.pruning.base import Masked
from layerif.compress.pruning.registry import PRUNERS, register_pruner
from layerif.compress.pruning.runner import prune
from layerif.data import load_task
from layerif.errors import InputError
from layerif.evaluation.perplexity import perplexity
from layerif.model.layers import find_decoder_layers
from layerif.search.base import Found, Strategy
from layerif.search.options import SearchOptions
from layerif.search.registry import STRATEGIES, register_strategy
from layerif.search.rounds import move
from layerif.search.searching import search_plan
from layerif.search.sparsity import SparsityKind
from layerif.search.texts import texts_for
from layerif.workflows.searching import check_unedited, search_into


def plan_for(model, sparsity=0.5, **options):
    return search_plan(
        model,
        sparsity,
        tokenizer=tiny_tokenizer(),
        **({"calibration": corpus(), **OPTIONS} | options),
    )


class InMemory:
    """Steps that are kept in a dictionary, and that may be cut short."""

    folder = None

    def __init__(self, cut_after=None):
        self.kept, self.cut_after = {}, cut_after

    def load(self, step):
        return self.kept.get(step)

    def save(self, step, tensors):
        self.kept[step] = {name: tensor.clone() for name, tensor in tensors.items()}
        if len(self.kept) == self.cut_after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("granularity", ["projection", "layer"])
def test_every_round_keeps_the_exact_total_and_the_bounds(granularity):
    model = trained_model()
    before = states(model)
    steps = InMemory()
    plan = plan_for(
        model, granularity=granularity, steps=steps, eta=0.2, below=0.1, above=0.05, sparsity=0.5
    )
    assert same(before, states(model)), "the weights are as they were, to the bit"
    layers = find_decoder_layers(model)
    options = SearchOptions(granularity=granularity, below=0.1, above=0.05)
    units = SparsityKind.among(layers, 0.5, options)
    assert len(steps.kept) >= 2
    for kept in (k for name, k in steps.kept.items() if name.startswith("round-")):
        s = kept["sparsities"].numpy()
        assert math.fsum(s * units.sizes) / units.sizes.sum() == pytest.approx(0.5, abs=1e-14)
        assert s.min() >= 0.4
        assert s.max() <= 0.55
    assert plan.total == 0.5
    best = steps.kept[f"round-{plan.how['best_round']:03d}"]["sparsities"].numpy()
    assert [m.sparsity for m in plan.modules] == best[units.of].tolist()
    if granularity == "layer":
        assert all(m.sparsity == pytest.approx(plan.allocation[m.layer]) for m in plan.modules)


def test_a_move_is_the_formula_where_no_bound_binds():
    units = SparsityKind(np.arange(3), np.array([10, 20, 30]), 0.5, 0.25, 0.7)
    g = np.array([-4.0, 1.0, 2.0])
    mean = (-4 * 10 + 20 + 2 * 30) / 60
    centred = g - mean
    expected = 0.5 + 0.03 * centred / np.abs(centred).mean()
    found = move(units.start(), g, units, 0.03)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[0] < 0.5, "where restoring weights helps most, fewer go"
    assert np.array_equal(move(units.start(), np.ones(3), units, 0.03), units.start())
    steep = np.array([-1.0] + [0.0] * 19)
    wide = SparsityKind(np.arange(20), np.full(20, 5), 0.5, 0.0, 1.0)
    assert 0.5 - move(wide.start(), steep, wide, 0.03)[0] <= 0.03 * 2.5 + 0.03


def test_the_plan_lowers_the_held_out_loss_and_that_of_test_text():
    model = trained_model()
    plan = plan_for(model, 0.6, rounds=4)
    losses = [each["held_out_loss"] for each in plan.how["rounds"]]
    assert plan.how["best_round"] == int(np.argmin(losses)) > 0
    assert min(losses) < losses[0] - 0.02
    values = {}
    for name, each in (("uniform", 0.6), ("marginal", plan)):
        pruned = trained_model()
        manifest = prune(pruned, each, tokenizer=tiny_tokenizer(), calibration=corpus(), **SEARCH)
        assert manifest.sparsity == pytest.approx(0.6, abs=1e-3)
        values[name] = perplexity(
            pruned, tiny_tokenizer(), corpus().text("evaluation"), context_length=32
        ).value
    assert values["marginal"] < values["uniform"] * 0.98


def test_a_round_that_makes_things_worse_is_taken_back_with_half_the_step():
    """Steps as large as can be overshoot."""
    wide = {"eta": 1.0, "rounds": 6, "below": 0.5, "above": 0.5}
    plan = plan_for(trained_model(), 0.5, start="uniform", **wide)
    rounds = plan.how["rounds"]
    best, shrunk = rounds[0]["held_out_loss"], 1.0
    setbacks = 0
    for number, each in enumerate(rounds[1:], start=1):
        assert each["eta"] == pytest.approx(1.0 * 0.8 ** (number - 1) * shrunk)
        if each["held_out_loss"] < best:
            best, setbacks = each["held_out_loss"], 0
        else:
            setbacks, shrunk = setbacks + 1, shrunk / 2
    assert shrunk < 1
    assert len(rounds) == 7 or setbacks == 2


def test_the_loss_may_be_that_of_a_task_or_of_another_corpus():
    model = trained_model()
    task = load_task("agreement")
    plan = plan_for(model, target=task, context_length=96, held_out_tokens=2000, rounds=1)
    assert plan.how["target"]["name"] == "agreement"
    other = plan_for(model, target=corpus(90), rounds=1, held_out_tokens=320)
    own = plan_for(model, rounds=1)
    found = [[m.sparsity for m in each.modules] for each in (plan, other, own)]
    assert found[0] != found[2]
    assert found[1] != found[2]


def test_a_target_that_is_the_calibration_text_is_none_of_its_own():
    def texts(target):
        return texts_for(
            tiny_model(),
            tiny_tokenizer(),
            corpus(),
            target,
            SearchOptions(context_length=32, held_out_tokens=256),
            8,
        )

    found = texts(corpus())
    assert not {c.index for c in found.held_out} & {c.index for c in found.calibration}
    assert found == texts(None)


@pytest.mark.parametrize("cut_after", [1, 2, 3])
def test_cut_short_it_goes_on_to_the_same_plan(cut_after):
    model = trained_model()
    before = states(model)
    whole = plan_for(model, rounds=3)
    steps = InMemory(cut_after)
    with pytest.raises(KeyboardInterrupt):
        plan_for(model, rounds=3, steps=steps)
    assert same(before, states(model))
    steps.cut_after = None
    resumed = plan_for(model, rounds=3, steps=steps)
    assert resumed.modules == whole.modules
    assert _losses(resumed) == _losses(whole)


def _losses(plan):
    return [(each["eta"], each["held_out_loss"]) for each in plan.how["rounds"]]


def test_a_plan_is_found_again_and_other_work_refused(tmp_path, capsys):
    model, path = trained_model(), tmp_path / "plan.json"
    options = SearchOptions(**OPTIONS | {"rounds": 1})

    def made(sparsity=0.5, **more):
        return search_into(path, model, tiny_tokenizer(), sparsity, calibration=corpus(), **more)

    first = made(options=options)
    assert Plan.load(path) == first
    stamp = path.stat().st_mtime_ns
    assert made(options=options) == first
    assert path.stat().st_mtime_ns == stamp
    assert "nothing is done again" in capsys.readouterr().err
    assert first.how["fingerprint"]["options"]["eta"] == first.how["eta"], "left out, and kept"
    with pytest.raises(InputError, match=r"rounds was 1 and is 2"):
        made(options=options.but(rounds=2))
    with pytest.raises(InputError, match=r"sparsity was 0\.5 and is 0\.6"):
        made(0.6, options=options)
    with pytest.raises(InputError, match="data"):
        made(options=options, target=corpus(90))
    text = path.read_text()
    edited = json.loads(text)
    ends = ("layers.0.mlp.gate_proj", "layers.0.mlp.up_proj")  # of one size
    one, other = (m for m in edited["modules"] if m["module"].endswith(ends))
    one["sparsity"] += 1e-3
    other["sparsity"] -= 1e-3
    path.write_text(json.dumps(edited))
    with pytest.raises(InputError, match=r"edited.*another .out"):
        made(options=options)
    with pytest.raises(InputError, match="edited"):
        check_unedited(path)
    path.write_text(text)
    check_unedited(path)
    assert made(0.6, options=options, overwrite=True).total == 0.6
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    Plan(kind="sparsity", allocation=[0.5]).save(path)
    with pytest.raises(InputError, match="made from"):
        made(options=options)


def test_what_cannot_be_done_is_refused_before_any_weight_changes():
    model = tiny_model()
    before = states(model)
    for message, options in {
        "sparsity must be within 0 to 1, not 1.5": {"sparsity": 1.5},
        "rounds=0": {"rounds": 0},
        r"delta=0\.0": {"delta": 0.0},
        r"eta=0\.0": {"eta": 0.0},
        "tokens=0": {"tokens": 0},
        "no strategy 'x'": {"strategy": "x"},
        "no searched kind 'x'": {"kind": "x"},
        "no pruner 'x'": {"method": "x"},
        "granularity": {"granularity": "head"},
        r"below=-0\.1": {"below": -0.1},
        "longer than the 128 positions": {"context_length": 129},
        "chunks of 32 tokens, and 1000": {"calibration_samples": 968},
        "held_out_tokens=0": {"held_out_tokens": 0},
    }.items():
        with pytest.raises(InputError, match=message):
            plan_for(model, **options)
    assert same(before, states(model))


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_and_everything_are_legal(sparsity):
    plan = plan_for(tiny_model(), sparsity, rounds=2)
    assert {m.sparsity for m in plan.modules} == {sparsity}


class Columns:
    """A pruner of a user's: whole inputs go, those of the smallest weights first."""

    statistics = None

    def prunable(self, projection, original, statistics):
        def mask(zeros):
            order = original.abs().sum(0).argsort()
            place = order.argsort()[None, :] * len(original)
            return place + torch.arange(len(original))[:, None] < zeros

        return Masked(original, mask)


def test_a_pruner_of_a_users_is_searched_with(monkeypatch):
    monkeypatch.setattr(PRUNERS, "_registered", dict(PRUNERS._registered))
    register_pruner("columns", Columns())
    plan = plan_for(trained_model(), method="columns")
    assert plan.how["method"] == "columns"
    assert plan.how["best_round"] > 0


def test_a_strategy_of_a_users_is_searched_by(monkeypatch, tmp_path):
    def half_and_half(search):
        """Even projections get more than odd ones."""
        state = search.kind.start()
        state[::2] += 0.1
        state[1::2] -= 0.1
        state = search.kind.projected(state)
        search.compressor.at(search.kind.levels(state))
        return Found(state, {"loss": search.loss(search.texts.held_out)})

    monkeypatch.setattr(STRATEGIES, "_registered", dict(STRATEGIES._registered))
    register_strategy("halves", Strategy(half_and_half, "none"))
    model, options = trained_model(), SearchOptions(**SEARCH, strategy="halves", below=0.1)
    path = tmp_path / "plan.json"
    plan = search_into(path, model, tiny_tokenizer(), 0.5, calibration=corpus(), options=options)
    assert plan.how["map"] == "halves"
    assert plan.how["loss"] > 0
    assert plan.modules[0].sparsity > 0.5 > plan.modules[1].sparsity
    assert "rounds" not in plan.how["fingerprint"]["options"], "it has no effect"


def test_the_command_makes_the_plan_once_and_prune_follows_it(layerif, model, text, tmp_path):
    plan = tmp_path / "plan.json"
    short = ["--calibration", text, "--calibration-samples", 3, "--context-length", 32]
    asked = ["search", "sparsity", "--sparsity", 0.5, "--model", model]
    asked += [*short, "--tokens", 96, "--held-out-tokens", 64, "--rounds", 2]
    status, printed, err = layerif(*asked, "--out", plan)
    assert status == 0, err
    assert "50.00% overall" in printed
    made = Plan.load(plan)
    assert made.model.name == str(model)
    assert made.how["map"] == "marginal"
    assert len({module.sparsity for module in made.modules}) > 1
    status, printed, err = layerif(*asked, "--json")
    assert status == 0, err
    unsaved = Plan.model_validate_json(printed)
    assert unsaved.modules == made.modules
    status, _, err = layerif("run", tmp_path / "plan.recipe.yaml")
    assert status == 0, err
    assert "nothing is done again" in err
    pruned = tmp_path / "pruned"
    status, _, err = layerif("prune", "--model", model, "--plan", plan, *short, "--out", pruned)
    assert status == 0, err
    for refused, message in (
        (["--target", "nothing"], "'nothing'"),
        (["--offspring", 3], "--offspring has no effect"),
        (["--strategy", "evolution"], "--rounds has no effect"),
    ):
        status, _, err = layerif(*asked, *refused)
        assert status == 2
        assert message in err


def test_the_command_searches_by_evolution(layerif, model, text, tmp_path):
    asked = ["search", "sparsity", "--sparsity", 0.5, "--model", model, "--calibration", text]
    asked += ["--calibration-samples", 3, "--context-length", 32, "--held-out-tokens", 64]
    asked += ["--strategy", "evolution", "--stages", "32:2", "--offspring", 3]
    status, _, err = layerif(*asked)
    assert status == 2
    assert "until a limit" in err
    plan = tmp_path / "plan.json"
    for _ in range(2):
        status, _, err = layerif(*asked, "--evaluations", 9, "--out", plan)
        assert status == 0, err
    assert "nothing is done again" in err
    assert Plan.load(plan).how["stages"] == [[32, 2], [64, 1]]
