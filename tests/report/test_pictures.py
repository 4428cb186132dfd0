"""A result that layers are ranked or a budget is spent by has its picture beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerif.artifacts import LayerScores, MetricScores, Plan
from layerif.report.plots import plot_metric, plot_plan, plot_scores

SCORED = ["--task", "agreement", "--train-samples", 6, "--validation-samples", 3, "--rank", 2]
CHUNKS = ["--calibration-samples", 4, "--context-length", 32]
ROUNDS = ["--rounds", 1, "--tokens", 64, "--held-out-tokens", 64, "--method", "magnitude"]


def drawn(stem: Path) -> list[bytes]:
    return [stem.with_name(f"{stem.name}.{suffix}").read_bytes() for suffix in ("png", "svg")]


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.json"
    path.write_text("[1, 2, 4]")
    return path


def test_of_scores(layerif, model, tmp_path):
    run = tmp_path / "run"
    status, _, err = layerif("score", "--model", model, *SCORED, "--out", run)
    assert status == 0, err
    plot_scores(LayerScores.load(run), tmp_path / "expected")
    assert drawn(run / "scores") == drawn(tmp_path / "expected")
    # Killed before the picture, the same command draws it, with nothing measured again.
    for path in run.glob("scores.*g"):
        path.unlink()
    status, out, err = layerif("score", "--model", model, *SCORED, "--out", run, "--json")
    assert status == 0, err
    assert "nothing is done again" in err
    json.loads(out)
    assert drawn(run / "scores") == drawn(tmp_path / "expected")
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_of_a_metric(layerif, model, tmp_path):
    out = tmp_path / "at-0.5"
    status, _, err = layerif("metric", "random", "--model", model, "--out", out)
    assert status == 0, err
    plot_metric(MetricScores.load(out), tmp_path / "expected")
    assert drawn(out) == drawn(tmp_path / "expected")


def test_of_plans(layerif, model, text, plain, tmp_path):
    measured = ["--model", model, "--calibration", text, *CHUNKS, *ROUNDS]
    for name, command in {
        "experts": [plain, "--total", 9],
        "ranks": [plain, "--total", 12, "--model", model],
        "sparsity": [plain, "--sparsity", 0.5],
        "marginal": [*measured, "--sparsity", 0.5],
    }.items():
        words = ("search", "sparsity") if name == "marginal" else ("allocate", name)
        out = tmp_path / name / "plan.json"
        status, printed, err = layerif(*words, *command, "--out", out, "--json")
        assert status == 0, err
        json.loads(printed)
        plot_plan(Plan.load(out), tmp_path / "expected")
        assert drawn(out.with_suffix("")) == drawn(tmp_path / "expected")
        written = {"plan.json", "plan.recipe.yaml", "plan.png", "plan.svg"}
        assert {path.name for path in out.parent.iterdir()} == written


def test_one_of_a_person_stays_and_is_named(layerif, plain, tmp_path):
    out = tmp_path / "plan.json"
    theirs = tmp_path / "plan.png"
    theirs.write_bytes(b"a photograph")
    for _ in range(2):
        status, _, err = layerif("allocate", "experts", plain, "--total", 9, "--out", out)
        assert status == 0, err
        assert str(theirs) in err
        assert theirs.read_bytes() == b"a photograph"
        assert sum(Plan.load(out).allocation) == 9
