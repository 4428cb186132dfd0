"""Every command refuses before the work what it must not write to, and leaves it as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.artifact_samples import make_scores
from helpers.folders import fill
from layerif.artifacts import Plan

# No such model: a command that comes to open it says so, and not what is wrong with --out.
NONE = ["--model", "no/such/model"]
TASK = ["--task", "agreement"]
COMMANDS = {
    "score": ["score", *NONE, *TASK],
    "prune": ["prune", *NONE, "--sparsity", 0.5],
    "finetune": ["finetune", *NONE, *TASK],
    "merge": ["merge", "no-model", "--adapter", "no-adapter"],
    "evaluate": ["evaluate", *NONE, "--tasks", "agreement"],
    "metric": ["metric", "dlp", *NONE],
    "marginal": ["allocate", "sparsity", "--map", "marginal", *NONE, "--sparsity", 0.5],
    "allocate": ["allocate", "sparsity", "scores", "--sparsity", 0.5],
    "validate": ["validate", *NONE, "--scores", "scores"],
    "sparsity": ["compare", "sparsity", *NONE, "--sparsity", 0.5, "--tasks", "agreement"],
    "experts": ["compare", "experts", *NONE, *TASK, "--total", 9],
    "run": ["run", "recipe.yaml"],
}
OUTS = ["pipe", "link", "taken", ".", "..", "/", "", "-", "a" * 240, "a\udcff", "a\x1b", "notes/a"]


def snapshot(folder: Path) -> dict[str, object]:
    return {
        str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    make_scores().save(folder / "scores")
    fill(folder / "taken", **{"notes.txt": "mine", "config.json": "{}"})
    fill(folder, notes="mine")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(folder / "pipe")
    recipe = {"model": "no/such/model", "out": "runs", "score": {"task": "agreement"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_writes_to_what_is_not_its_own(command: str, layerif, here: Path) -> None:
    before = snapshot(here.parent)
    flags = [[]] if command in ("sparsity", "experts", "run") else [[], ["--overwrite"]]
    for out in OUTS:
        for more in flags:
            status, printed, err = layerif(*COMMANDS[command], f"--out={out}", *more)
            assert (status, printed) == (2, ""), (out, err)
            assert "such/model" not in err, (out, err)
            assert len(err) < 600
            assert snapshot(here.parent) == before, out


def test_another_plan_is_refused_with_what_differs(layerif, here: Path) -> None:
    allocate = ["allocate", "sparsity", "scores", "--out", "plan.json"]
    assert layerif(*allocate, "--sparsity", 0.5)[0] == 0
    before = snapshot(here)
    assert layerif(*allocate, "--sparsity", 0.5)[0] == 0
    assert snapshot(here) == before
    status, _, err = layerif(*allocate, "--sparsity", 0.5, "--epsilon", 0.2)
    assert status == 2
    assert "epsilon was" in err
    assert snapshot(here) == before
    assert layerif(*allocate, "--sparsity", 0.6, "--overwrite")[0] == 0
    assert Plan.load("plan.json").total == 0.6


def test_a_recipe_that_a_person_wrote_beside_is_kept(layerif, here: Path) -> None:
    (here / "plan.recipe.yaml").write_text("my notes")
    status, _, err = layerif(
        "allocate", "sparsity", "scores", "--sparsity", 0.5, "--out", "plan.json"
    )
    assert status == 0
    assert "stays" in err
    assert (here / "plan.recipe.yaml").read_text() == "my notes"


def test_a_person_s_plan_without_a_format_is_not_replaced(layerif, here: Path) -> None:
    plan = here / "plan.json"
    plan.write_text('{"kind": "sparsity", "allocation": [0.4, 0.6, 0.5, 0.5, 0.5]}')
    before = plan.read_bytes()
    for more in ([], ["--overwrite"]):
        allocate = ["allocate", "sparsity", "scores", "--sparsity", 0.5, "--out", plan, *more]
        assert layerif(*allocate)[0] == 2
        assert plan.read_bytes() == before


def test_a_model_is_pruned_through_a_link(layerif, model, tmp_path: Path) -> None:
    """Would see: the link gone, a folder in its place, and leftovers beside it."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "big")
    prune = ["prune", "--model", model, "--method", "magnitude", "--out", tmp_path / "run"]
    assert layerif(*prune, "--sparsity", 0.5)[0] == 0
    status, _, err = layerif(*prune, "--sparsity", 0.6)
    assert status == 2
    assert "was 0.5 and is 0.6" in err
    assert layerif(*prune, "--sparsity", 0.6, "--overwrite")[0] == 0
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "disk" / "big" / "recipe.yaml").is_file()
    assert sorted(os.listdir(tmp_path)) == ["disk", "run"]
    assert os.listdir(tmp_path / "disk") == ["big"]


def test_a_full_device_that_is_printed_to_is_named(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "layerif", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Exception ignored" not in done.stderr
