"""Plans of depth compared on one model: as many layers, the same items, found again."""

from __future__ import annotations

import pytest
import torch

from helpers.marginal_models import corpus
from layerif.artifacts import Comparisons, Plan, Results
from layerif.errors import InputError
from layerif.model.opening import open_model
from layerif.plans.named import PLANS, find_plan
from layerif.search.depth_options import DEPTH_STRATEGIES
from layerif.workflows.compare_depth import compare_depth
from layerif.workflows.options import DepthStudy

PLAIN = "shortlist,block_influence,contiguous,taylor,quadratic,random,uniform,last,greedy"


def asked(model, text, out, plans, *more):
    return [
        *["compare", "depth", "--model", model, "--drop", 1, "--tasks", text, "--out", out],
        *["--calibration", text, "--plans", plans, "--tokens", 128, "--trial-tokens", 64],
        *["--context-length", 32, "--held-out-tokens", 64, "--max-tokens", 256, *more],
    ]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "animals.txt"
    path.write_text("\n\n".join([*corpus().calibration, *corpus().evaluation]))
    return path


def test_every_plan_drops_as_much_and_is_measured(layerif, model, text, tmp_path):
    out = tmp_path / "out"
    status, printed, err = layerif(*asked(model, text, out, PLAIN))
    assert status == 0, err
    names = PLAIN.split(",")
    losses = {}
    for name in names:
        plan = Plan.load(out / f"{name}.json")
        assert sorted(plan.allocation) == [0, 1, 1]
        (measured,) = Results.load(out / f"{name}-results.json").measurements
        losses.setdefault(tuple(plan.allocation), set()).add(measured.value)
        assert name in printed
    # The same layers have the same perplexity, other layers another.
    assert all(len(found) == 1 for found in losses.values())
    assert len(losses) > 1
    kept = Comparisons.load(out / "comparison.json").comparisons
    assert {each.baseline for each in kept} == {"shortlist"}
    assert {each.model for each in kept} == {*names} - {"shortlist"}
    # Again nothing is done, and an edited plan is not lost.
    status, _, err = layerif(*asked(model, text, out, PLAIN))
    assert status == 0, err
    assert "measuring" not in err
    edited = Plan.load(out / "shortlist.json")
    levels = [1 - level for level in edited.allocation]
    edited.model_copy(update={"allocation": levels, "total": sum(levels)}).save(
        out / "shortlist.json"
    )
    status, _, err = layerif(*asked(model, text, out, PLAIN))
    assert status == 2
    assert "edited" in err


def test_by_sublayers(layerif, model, text, tmp_path):
    more = ["--unit", "sublayer"]
    plans = "shortlist,random"
    status, _, err = layerif(*asked(model, text, tmp_path / "out", plans, *more))
    assert status == 0, err
    plan = Plan.load(tmp_path / "out" / "shortlist.json")
    assert plan.modules is not None
    status, _, err = layerif(*asked(model, text, tmp_path / "b", "shortlist,contiguous", *more))
    assert status == 2
    assert "whole layers" in err
    assert not (tmp_path / "b").exists()


def test_what_cannot_be_compared_is_refused_before_work(model, tmp_path):
    opened, tokenizer = open_model(model)
    before = {name: tensor.clone() for name, tensor in opened.state_dict().items()}
    with pytest.raises(InputError, match="cannot be dropped"):
        compare_depth(
            tmp_path / "out",
            opened,
            tokenizer,
            ["random"],
            DepthStudy(drop=3),
            calibration=corpus(),
            on=[corpus()],
            options=_options(),
        )
    assert not (tmp_path / "out").exists()
    assert all(torch.equal(before[name], now) for name, now in opened.state_dict().items())


def test_likelihoods_of_the_whole_model_are_kept_for_others(model, tmp_path):
    opened, tokenizer = open_model(model)
    study = DepthStudy(drop=1, context_length=32, held_out_tokens=64, tokens=64)
    kept = tmp_path / "kept"
    for out in ("one", "other"):
        compare_depth(
            tmp_path / out,
            opened,
            tokenizer,
            ["random"],
            study,
            calibration=corpus(),
            on=[corpus()],
            options=_options(),
            cache=kept,
        )
        assert len([*kept.glob("*.safetensors")]) == 1


def _options():
    from layerif.evaluation.options import EvaluateOptions

    return EvaluateOptions(context_length=32, max_tokens=64)


def test_every_strategy_is_a_named_plan():
    names = PLANS["depth"].names()
    assert set(DEPTH_STRATEGIES.names()) <= {*names}
    for name in DEPTH_STRATEGIES.names():
        assert find_plan(name, "depth").searched == {"strategy": name}
