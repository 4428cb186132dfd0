"""From metrics to plans, by layers and by projections, in Python and on the command line."""

from __future__ import annotations

import json
from math import fsum

import numpy as np
import pytest

from helpers.artifact_samples import make_scores
from helpers.tiny import tiny_model
from layerif.artifacts import Manifest, MetricScores, Plan
from layerif.errors import InputError
from layerif.metrics.measuring import metric_scores
from layerif.plans.allocate import allocate_experts, allocate_ranks, allocate_sparsity
from layerif.plans.maps import sparsity as budgets
from layerif.plans.score_files import read_scores

MAPS = ["layerif", "owl", "dlp", "uniform"]


@pytest.fixture(scope="module")
def alphas():
    return metric_scores(tiny_model(), "pl_alpha")


@pytest.mark.parametrize("map", MAPS)
def test_a_metric_gives_the_plan_of_its_numbers(alphas, map):
    plan = allocate_sparsity(alphas, 0.5, map=map)
    plain = allocate_sparsity(alphas.scores, 0.5, map=map, model=alphas.model)
    assert plan.allocation == plain.allocation
    assert plan.model == alphas.model
    sizes = alphas.model.layer_sizes
    weighted = fsum(s * n for s, n in zip(plan.allocation, sizes, strict=True)) / sum(sizes)
    assert weighted == pytest.approx(0.5, abs=1e-14)
    experts = allocate_experts(alphas, 12, beta=2.5)
    assert experts.allocation == allocate_experts(alphas.scores, 12, beta=2.5).allocation
    assert experts.how["metric"] == "pl_alpha"


@pytest.mark.parametrize("allocate", [allocate_experts, allocate_ranks])
def test_controls_give_plans_of_whole_numbers(alphas, allocate):
    # Would see: a shuffled plan that is no plan of the same numbers in another order.
    random = allocate(metric_scores(tiny_model(), "random", seed=3), 12)
    assert sum(random.allocation) == 12
    assert random.allocation == allocate(np.random.default_rng(3).random(3), 12).allocation
    own = allocate(alphas, 12).allocation
    plans = [
        allocate(metric_scores(tiny_model(), "shuffled", of="pl_alpha", seed=seed), 12).allocation
        for seed in range(5)
    ]
    assert all(sorted(plan) == sorted(own) for plan in plans)
    assert any(plan != own for plan in plans)


def test_what_was_done_is_recorded(alphas):
    plan = allocate_sparsity(alphas, 0.5, map="dlp", granularity="projection")
    assert plan.how == {
        "metric": "pl_alpha",
        "options": {"compat": "corrected"},
        "map": "dlp",
        "lam": 0.15,
        "orientation": "inverse",
        "s_max": 1.0,
        "granularity": "projection",
    }
    how = allocate_sparsity([1, 2, 3], 0.5, map="owl", lam=0.1, orientation="direct").how
    assert how == {
        "metric": "given",
        "map": "owl",
        "lam": 0.1,
        "orientation": "direct",
        "s_max": 1.0,
    }
    assert allocate_sparsity([1, 2, 3], 0.5, map="owl").how["lam"] == 0.08


@pytest.mark.parametrize("orientation", [None, "direct", "inverse"])
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("scores", ["alphas", "influence"])
def test_projections_get_the_map_of_their_own_scores(request, scores, map, orientation):
    if scores == "influence":
        scores = make_scores()
        values = scores.aggregate_projections("top")
        numels = [p.numel for p in scores.projections]
        names = [f"layers.{p.layer}.{p.name}" for p in scores.projections]
    else:
        scores = request.getfixturevalue("alphas")
        values = np.array([p.score for p in scores.projections])
        numels = [p.numel for p in scores.projections]
        names = [p.module for p in scores.projections]
    turned = {} if orientation is None or map == "uniform" else {"orientation": orientation}
    plan = allocate_sparsity(
        scores,
        0.6,
        map=map,
        granularity="projection",
        aggregate="top",
        epsilon=0.3,
        **turned,
    )
    expected = {
        "layerif": lambda: budgets.layerif_map(
            values, 0.6, numels, epsilon=0.3, smooth=False, **turned
        ),
        "owl": lambda: budgets.owl_map(values, 0.6, numels, **turned),
        "dlp": lambda: budgets.dlp_map(values, 0.6, numels, **turned),
        "uniform": lambda: np.full(len(values), 0.6),
    }[map]()
    assert [m.sparsity for m in plan.modules] == expected.tolist()
    assert [m.module for m in plan.modules] == names
    total = fsum(m.sparsity * m.numel for m in plan.modules) / sum(numels)
    assert total == pytest.approx(0.6, abs=1e-14)
    assert plan.realised_total == pytest.approx(0.6, abs=1e-12)
    assert plan.model == scores.model


def test_what_is_refused(alphas):
    blocks = alphas.model_copy(update={"metric": "block_influence", "projections": None})
    with pytest.raises(InputError, match="block_influence"):
        allocate_sparsity(blocks, 0.5, granularity="projection")
    with pytest.raises(InputError, match="plain numbers"):
        allocate_sparsity([1, 2, 3], 0.5, granularity="projection")
    with pytest.raises(InputError, match="the map layerif takes epsilon"):
        allocate_sparsity(alphas, 0.5, lam=0.1)
    for option in ({"lam": 0.1}, {"orientation": "direct"}):
        with pytest.raises(InputError, match="the map uniform takes"):
            allocate_sparsity(alphas, 0.5, map="uniform", **option)
    with pytest.raises(InputError, match="no option lamb; did you mean lam"):
        allocate_sparsity(alphas, 0.5, map="owl", lamb=0.1)
    with pytest.raises(InputError, match="no option granularity"):
        allocate_experts(alphas, 9, granularity="projection")
    with pytest.raises(InputError, match="granularity='row'"):
        allocate_sparsity(alphas, 0.5, granularity="row")
    with pytest.raises(InputError, match="apart"):
        allocate_sparsity(metric_scores(tiny_model(), "uniform"), 0.5, map="owl")
    plan = allocate_sparsity(
        *(metric_scores(tiny_model(), "uniform"), 0.5),
        **{"map": "owl", "granularity": "projection", "on_constant": "uniform"},
    )
    assert plan.how == {"map": "uniform", "granularity": "projection"}
    assert {m.sparsity for m in plan.modules} == {0.5}


def metric_command(model, text, name, out, *more):
    reads = ["--calibration", text, "--context-length", 32, "--calibration-samples", 4]
    own = reads if name in ("outlier_ratio", "dlp") else []
    return ["metric", name, "--model", model, "--out", out, *own, *more]


def test_the_whole_way(layerif, model, text, tmp_path):
    out = tmp_path / "owl.json"
    command = metric_command(model, text, "outlier_ratio", out, "--multiple", 3)
    status, printed, err = layerif(*command)
    assert status == 0, err
    assert "outlier_ratio per decoder layer" in printed
    scores = MetricScores.load(out)
    assert scores == read_scores(out)
    for layer, value in enumerate(scores.scores):
        own = [p.score for p in scores.projections if p.layer == layer]
        (row,) = (line for line in printed.splitlines() if line.split()[:1] == [str(layer)])
        assert row.split()[1:5] == [f"{value:.4g}", f"{min(own):.4g}", "to", f"{max(own):.4g}"]
    assert scores.options == {"multiple": 3.0}
    assert scores.calibration["samples"] == 4
    assert scores.fingerprint.options["context_length"] == 32

    # Found again; by its recipe too; other work is refused, unless it may be replaced.
    stamp = out.stat().st_mtime_ns
    for again in (command, ["run", tmp_path / "owl.recipe.yaml"]):
        status, _, err = layerif(*again)
        assert status == 0, err
        assert "nothing is done again" in err
    status, _, err = layerif(*command, "--seed", 2)
    assert status == 2
    assert "seed was" in err
    status, _, err = layerif(*command, "--multiple", 4)
    assert "multiple was" in err
    assert out.stat().st_mtime_ns == stamp
    status, printed, err = layerif(*command, "--multiple", 4, "--overwrite", "--json")
    assert status == 0, err
    assert json.loads(printed)["options"] == {"multiple": 4.0}
    assert MetricScores.load(out).options == {"multiple": 4.0}

    plan = tmp_path / "plan.json"
    status, _, err = layerif(
        *["allocate", "sparsity", out, "--sparsity", 0.5, "--map", "owl", "--lam", 0.1],
        *["--granularity", "projection", "--out", plan],
    )
    assert status == 0, err
    made = Plan.load(plan)
    assert made == allocate_sparsity(
        MetricScores.load(out), 0.5, map="owl", lam=0.1, granularity="projection"
    )
    status, _, err = layerif("run", tmp_path / "plan.recipe.yaml")
    assert status == 0, err
    pruned = tmp_path / "pruned"
    status, _, err = layerif(
        *["prune", "--model", model, "--plan", plan, "--calibration", text, "--out", pruned],
        *["--context-length", 32, "--calibration-samples", 4],
    )
    assert status == 0, err
    manifest = Manifest.load(pruned / "layerif_manifest.json")
    for module, planned in zip(manifest.modules, made.modules, strict=True):
        assert module.zeros == round(planned.sparsity * planned.numel)


def test_what_counts_for_a_result_and_what_does_not(layerif, model, text, tmp_path):
    for name, more, says in [
        ("pl_alpha", [], "--seed"),
        ("random", [], "seed was"),
        ("shuffled", ["--of", "pl_alpha"], "seed was"),
    ]:
        command = metric_command(model, text, name, tmp_path / f"{name}.json", *more)
        assert layerif(*command)[0] == 0
        status, _, err = layerif(*command, "--seed", 1)
        assert status == 2
        assert says in err


def test_commands_that_cannot_be_carried_out(layerif, model, text, tmp_path):
    out = tmp_path / "scores.json"
    for name, more, says in [
        ("alpha", [], "'alpha'"),
        ("dlp", ["--compat", "reference"], "compat"),
        ("shuffled", [], "shuffled"),
        ("outlier_ratio", ["--multiple", -1], "-1.0"),
        ("dlp", ["--calibration-samples", 10_000], "10000"),
    ]:
        status, _, err = layerif(*metric_command(model, text, name, out, *more))
        assert status == 2
        assert says in err
        assert not out.exists()
    out.write_text("[1, 2, 3]")
    status, _, err = layerif(*metric_command(model, text, "pl_alpha", out))
    assert status == 2
    assert "layerif.metric" in err
    status, _, err = layerif(*metric_command(model, text, "pl_alpha", out, "--overwrite"))
    assert (status, out.read_text()) == (2, "[1, 2, 3]"), "a person's file is not replaced"
    out.unlink()
    assert layerif(*metric_command(model, text, "pl_alpha", out))[0] == 0
    allocate = ["allocate", "sparsity", out, "--sparsity", 0.5]
    status, _, err = layerif(*allocate, "--model", model)
    assert status == 2
    assert "leave out --model" in err
    status, _, err = layerif(*allocate, "--lam", 0.1)
    assert status == 2
    assert "--lam" in err
