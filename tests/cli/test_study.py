"""Studies: several commands from one recipe, with one model and one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from layerif.artifacts import LayerScores, Plan

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


SCORED = {"command": "score", "task": "agreement", "out": "{out}/scores"}


def study(tmp_path, model, text, **more):
    few = {"train_samples": 6, "validation_samples": 3, "rank": 2}
    value = {
        "model": str(model),
        "out": str(tmp_path / "run"),
        "seed": 3,
        "steps": [
            {"command": "score", "task": "agreement", "out": "{out}/scores", **few},
            {
                "command": "allocate sparsity",
                "model": None,
                "scores": "{out}/scores",
                "sparsity": 0.5,
                "out": "{out}/plan.json",
            },
            {
                "command": "prune",
                "plan": "{out}/plan.json",
                "method": "magnitude",
                "seed": None,
                "out": "{out}/pruned",
            },
            {
                "command": "evaluate",
                "model": "{out}/pruned",
                "tasks": [str(text)],
                "context_length": 32,
                "out": "{out}/results.json",
            },
        ],
        **more,
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def test_steps_share_what_stands_beside_them_and_are_found_again(layerif, model, text, tmp_path):
    path = study(tmp_path, model, text)
    status, _, err = layerif("run", path)
    assert status == 0, err
    run = tmp_path / "run"
    assert LayerScores.load(run / "scores").record.seed == 3
    assert Plan.load(run / "plan.json").total == 0.5
    results = json.loads((run / "results.json").read_text())
    assert results["model"]["name"] == str(run / "pruned")
    assert "step 4 of 4: layerif evaluate" in err
    status, _, err = layerif("run", path, "--out", run)
    assert status == 0, err
    assert err.count("nothing is done again") >= 3


def test_another_model_and_folder_take_the_places_of_the_studys(layerif, model, text, tmp_path):
    path = study(tmp_path, "there-is-none", text)
    status, _, err = layerif("run", path, "--model", model, "--out", tmp_path / "other")
    assert status == 0, err
    assert (tmp_path / "other" / "pruned").is_dir()
    assert not (tmp_path / "run").exists()


def test_the_folder_may_be_named_beside_the_steps_too(layerif, model, text, tmp_path):
    few = {"train_samples": 6, "validation_samples": 3, "rank": 2}
    plan = {"command": "allocate sparsity", "model": None, "out": "{out}/plan.json"}
    steps = [{**SCORED, **few}, {**plan, "sparsity": 0.5}]
    path = study(tmp_path, model, text, scores="{out}/scores", steps=steps)
    status, _, err = layerif("run", path)
    assert status == 0, err
    assert Plan.load(tmp_path / "run" / "plan.json").total == 0.5
    status, _, err = layerif("run", path, "--json")
    assert status == 2
    assert "--json" in err
    status, _, err = layerif("run", path, "--set", "steps=[{command: score}, {command: doctr}]")
    assert status == 2
    assert "doctr" in err
    more = "steps=[{command: score}, {command: score}, {command: doctr}]"
    status, _, err = layerif("run", path, "--set", more)
    assert status == 2
    assert "doctr" in err


def test_an_option_is_set_for_one_run(layerif, model, text, tmp_path):
    path = study(tmp_path, model, text)
    status, _, err = layerif("run", path, "--set", "seed=4", "--set", "dtype=bfloat16")
    assert status == 0, err
    record = LayerScores.load(tmp_path / "run" / "scores").record
    assert (record.seed, record.setting.dtype) == (4, "bfloat16")
    for said, word in [("seed", "NAME=VALUE"), ("score.seed=1", "stage"), ("seed=[", "YAML")]:
        status, _, err = layerif("run", path, "--set", said)
        assert status == 2
        assert word in err
    # Of a recipe of stages, and of a single command.
    (recipe := tmp_path / "recipe.yaml").write_text(
        "{model: none, out: run, score: {task: agreement}, sparsity: {target: 0.5}, prune: {}, "
        "evaluate: {tasks: [agreement]}}"
    )
    status, _, err = layerif("run", recipe, "--set", "score.rank=-3")
    assert status == 2
    assert "rank" in err
    recipe.write_text(recipe.read_text().replace("model: none, ", ""))
    status, _, err = layerif("run", recipe, "--model", "there-is-none")
    assert status == 2
    assert "there-is-none" in err
    again = tmp_path / "run" / "scores" / "recipe.yaml"
    status, _, err = layerif("run", again, "--set", "seed=5", "--out", tmp_path / "other")
    assert status == 0, err
    assert LayerScores.load(tmp_path / "other").record.seed == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": []}, ["line", "list"]),
        ({"steps": [{"task": "mrpc"}]}, ["line", "command"]),
        ({"steps": [{"command": "scores", "task": "mrpc"}]}, ["line", "scores"]),
        ({"steps": [{"command": "score", "tusk": "mrpc"}]}, ["line", "tusk"]),
        ({"steps": [{"command": "prune", "overwrite": True}]}, ["line", "--overwrite"]),
        ({"dtyp": "bfloat16"}, ["dtyp"]),
        ({"out": None}, ["out"]),
        ({"out": ""}, ["line", "out"]),
        ({"steps": [SCORED, {"command": "score", "task": "mrpc"}]}, ["line 8", "score", "out"]),
        ({"steps": [{**SCORED, "tolerance": 0.1}]}, ["line", "tolerance"]),
        ({"steps": [{**SCORED, "model": "m", "seed": 1}]}, ["line", "no step uses"]),
        ({"steps": [{"command": "clean", "folder": "{out}"}]}, ["line", "clean"]),
    ],
)
def test_what_is_wrong_is_said_with_its_line_before_the_first_step(
    layerif, model, text, tmp_path, change, words
):
    status, _, err = layerif("run", study(tmp_path, model, text, **change))
    assert status == 2
    assert all(word in err for word in words), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_project_is_legal_as_far_as_its_data(layerif, path, tmp_path):
    """Its steps and options are, so that what is refused is the folder without data."""
    status, _, err = layerif("run", path, "--out", tmp_path / "run", "--data-dir", tmp_path)
    assert status == 2
    assert "step 1 of" in err, err
    assert str(tmp_path) in err, err
