"""`layerif allocate experts` and `ranks` on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from layerif.adapters import trainable_parameters
from layerif.artifacts import MetricScores, Plan
from layerif.model.opening import open_skeleton
from layerif.plans.maps.counts import apportion, apportion_as_authors


@pytest.fixture(scope="module")
def alphas(model, tmp_path_factory):
    """What `layerif metric pl_alpha` writes."""
    from layerif.metrics.measuring import metric_scores
    from layerif.model.opening import open_model

    path = tmp_path_factory.mktemp("scores") / "pl_alpha.json"
    metric_scores(open_model(model)[0], "pl_alpha").save(path)
    return path


@pytest.mark.parametrize("kind", ["experts", "ranks"])
def test_alphalora_in_one_command(layerif, alphas, tmp_path, kind):
    out = tmp_path / "plan.json"
    options = ["--total", 17, "--beta", 2.5, "--normalise", "none"]
    weights = np.array(MetricScores.load(alphas).scores) ** 2.5
    status, printed, err = layerif("allocate", kind, alphas, *options, "--out", out)
    assert status == 0, err
    assert "17 in all" in printed
    assert Plan.load(out).kind == kind
    assert Plan.load(out).allocation == apportion(weights, 17).tolist()
    status, printed, err = layerif("allocate", kind, alphas, *options, "--compat=authors", "--json")
    assert status == 0, err
    plan = Plan.model_validate_json(printed)
    assert plan.allocation == apportion_as_authors(weights, 17).tolist()
    assert (plan.how["normalise"], plan.how["compat"]) == ("none", "authors")


@pytest.mark.parametrize("kind", ["experts", "ranks"])
def test_a_model_named_says_what_is_trained(layerif, model, alphas, tmp_path, kind):
    plain = tmp_path / "plain.json"
    plain.write_text("[1, 2, 4]")
    rank = ["--rank", 4] if kind == "experts" else []
    for scores in (alphas, plain):
        base = ["allocate", kind, scores, "--total", 10, "--model", model, *rank]
        status, printed, err = layerif(*base, "--json")
        assert status == 0, err
        value = json.loads(printed)
        found = value.pop("trainable")
        plan = Plan.model_validate(value)
        assert plan.model.layers == 3
        expected = trainable_parameters(plan, open_skeleton(model), rank=4)
        assert found["by_layer"] == expected.tolist()
        assert found["parameters"] == expected.sum()
        assert found["plain_lora"]["rank"] == (13 if kind == "experts" else 3)
        status, printed, err = layerif(*base)
        assert status == 0, err
        assert f"{expected.sum():,} trainable parameters; plain LoRA of rank" in printed


def test_scores_of_another_model_are_refused(layerif, model, alphas, tmp_path):
    other = tmp_path / "other.json"
    value = json.loads(alphas.read_text())
    value["model"]["layer_sizes"] = [n + 1 for n in value["model"]["layer_sizes"]]
    value["projections"] = None
    other.write_text(json.dumps(value))
    out = tmp_path / "plan.json"
    command = ["allocate", "ranks", other, "--total", 10, "--model", model, "--out", out]
    status, _, err = layerif(*command)
    assert status == 2
    assert "make a plan for this model" in err
    assert not out.exists()


def test_bad_input_is_refused(layerif, alphas):
    base = ["allocate", "ranks", alphas, "--total", 9]
    for options, says in (
        (["--total", 2], "total of 2"),
        (["--normalise", "none", "--orientation", "inverse"], "one of the two"),
        (["--map", "mola", "--shape", "2-x"], "'2-x'"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--compat", "theirs"], "'theirs'"),
    ):
        status, _, err = layerif(*base, *options)
        assert status == 2
        assert says in err
