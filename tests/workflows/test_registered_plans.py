"""A plan and a kind that a user registers: one function, one entry, known everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

import layerif as package
from helpers.experts_study import rows
from helpers.recipes import recipe
from layerif.artifacts import Comparisons, Plan
from layerif.errors import InputError
from layerif.plans.kinds.registry import KINDS
from layerif.plans.named import PLANS


def toy(scores, *, lift=1.0):
    return lift + scores / 10


@pytest.fixture
def registered(monkeypatch):
    """What is registered in a test is forgotten after it."""
    for registry in (KINDS, *PLANS.values()):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    package.register_plan("toy", toy, kinds=("sparsity", "experts"), metric="random", tuned="lift")


@pytest.mark.usefixtures("registered")
def test_a_plan_is_compared_and_tuned(layerif, model, text, tmp_path):
    out = tmp_path / "out"
    status, printed, err = layerif(
        *["compare", "sparsity", "--model", model, "--sparsity", 0.5, "--tries", 2, "--out", out],
        *["--tasks", text, "--plans", "toy", "--calibration", text, "--calibration-samples", 4],
        *["--context-length", 32, "--held-out-tokens", 64],
    )
    assert status == 0, err
    assert "toy" in printed
    tried = json.loads((out / "tuning.json").read_text())["toy"]["tried"]
    assert [each["lift"] for each in tried] == [1.0, 2.0]
    plan = Plan.load(out / "toy.json")
    assert plan.realised_total == pytest.approx(0.5, abs=1e-12)
    assert (plan.how["metric"], plan.how["map"]) == ("random", "toy")


@pytest.mark.usefixtures("registered")
def test_a_plan_is_measured_in_a_run_and_trained(layerif, model, text, tmp_path):
    package.register_plan("tilt", toy, kinds=("sparsity",), metric="influence")
    path = recipe(
        model,
        text,
        tmp_path,
        sparsity={"target": 0.5, "beside": ["toy", "tilt"]},
        finetune={"plans": ["toy"], "max_steps": 1, "batch_size": 2, "rank": 2, "samples": 4},
    )
    status, _, err = layerif("run", path)
    assert status == 0, err
    run = tmp_path / "run"
    found = Comparisons.load(run / "comparison.json").comparisons
    assert {c.model for c in found} == {"toy", "tilt", "LayerIF"}
    assert Plan.load(run / "finetuned" / "toy.json").realised_total == 9
    assert Plan.load(run / "toy.json").realised_total == pytest.approx(0.5)
    value = yaml.safe_load(path.read_text())
    for name, says in {"toyy": "did you mean toy", "layerif": "leave it out"}.items():
        path.write_text(yaml.safe_dump(value | {"sparsity": {"target": 0.5, "beside": [name]}}))
        status, _, err = layerif("run", path)
        assert status == 2
        assert "line " in err
        assert says in err


@pytest.mark.usefixtures("registered")
def test_a_plan_of_experts_is_trained(layerif, model, tmp_path):
    lines = [
        json.dumps({"prompt": e.prompt, "choices": [" yes", " no"], "answer": e.answer})
        for e in rows(0, 40)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    status, printed, err = layerif(
        *["compare", "experts", "--model", model, "--task", tmp_path / "rows.jsonl", "--total", 7],
        *["--plans", "toy", "--seeds", 0, "--max-steps", 1, "--batch-size", 4, "--rank", 2],
        *["--validation-samples", 0, "--out", tmp_path / "run"],
    )
    assert status == 0, err
    assert "toy" in printed
    assert Plan.load(tmp_path / "run" / "toy.json").realised_total == 7


@pytest.mark.usefixtures("registered")
def test_no_name_is_given_twice():
    for name in ("toy", "owl"):
        with pytest.raises(InputError, match="already exists"):
            package.register_plan(name, toy, kinds=("sparsity",))
    with pytest.raises(InputError, match="plans of ranks have no names"):
        package.register_plan("other", toy, kinds=("sparsity", "ranks"))
    with pytest.raises(InputError, match="'mola-1234' is a plan of MoLA"):
        package.register_plan("mola-1234", toy, kinds=("experts",))


def test_a_plan_that_is_refused_for_one_kind_has_no_name_in_another():
    with pytest.raises(InputError, match="experts plan 'alphalora' already exists"):
        package.register_plan("alphalora", toy, kinds=("sparsity", "experts"))
    assert "alphalora" not in PLANS["sparsity"].names()


def test_help_lists_what_is_registered():
    code = (
        "import layerif; from layerif import cli\n"
        "layerif.register_plan('toy', lambda scores: scores, kinds=('sparsity',))\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", "sparsity", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "evolution, toy" in " ".join(done.stdout.replace("│", " ").split()), done.stderr


@pytest.mark.usefixtures("registered")
def test_a_kind_is_known_to_allocate_files_and_tables(tmp_path):
    from layerif.report.plots import plot_plan
    from layerif.report.tables import plan_table

    heads = replace(KINDS.find("experts"), name="heads", label="heads kept", level="{} heads")
    package.register_kind(heads)
    plan = package.allocate([1.0, 3.0, 2.0], "heads", 9, map="power", beta=1.0)
    assert (plan.kind, sum(plan.allocation)) == ("heads", 9)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert "Heads kept per decoder layer: 9 in all" in str(plan_table(plan).title)
    assert plot_plan(plan, tmp_path / "plan")
    with pytest.raises(InputError, match=r"layer 1 has 1\.5 heads; each layer needs a whole"):
        Plan.parse({"kind": "heads", "allocation": [1, 1.5]}, "plan")
