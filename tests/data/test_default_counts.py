"""Counts of rows that nobody asked for give way to what there is; those that were given do not."""

from __future__ import annotations

import json

import pytest
import yaml

from layerif.artifacts import LayerScores
from layerif.data import load_task
from layerif.errors import InputError
from layerif.workflows.preparing import prepared
from layerif.workflows.recipe import Recipe


@pytest.fixture
def own(tmp_path):
    """40 rows: 32 to train, 4 to validate, 4 to test."""
    path = tmp_path / "own.jsonl"
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_score_takes_what_there_is_and_says_so(layerif, model, own, tmp_path):
    words = ["score", "--model", model, "--task", own, "--rank", 2, "--out", tmp_path / "run"]
    status, _, err = layerif(*words, "--validation-samples", 50)
    assert status == 2
    assert "4 validation" in err
    assert "validation_samples" in err or "--validation-samples" in err
    status, _, err = layerif(*words)
    assert status == 0, err
    assert "all 32 train rows" in err
    record = LayerScores.load(tmp_path / "run").record
    assert (record.train_samples, record.validation_samples) == (32, 4)
    # What was not given gives way again in a replay.
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert not {"train_samples", "validation_samples"} & set(written)
    status, _, err = layerif("run", tmp_path / "run" / "recipe.yaml")
    assert status == 0, err
    assert "nothing is done again" in err


def test_tasks_show(layerif, own):
    status, out, _ = layerif("tasks", "show", own, "--split", "test", "--count", 5)
    assert status == 2
    status, out, _ = layerif("tasks", "show", own, "--split", "test", "--json")
    assert len(json.loads(out)["examples"]) == 3


def test_a_recipe(own, model, tmp_path, text):
    value = {
        "model": str(model),
        "out": str(tmp_path / "run"),
        "score": {"task": str(own)},
        "sparsity": {"target": 0.5},
        "prune": {"calibration": str(text), "context_length": 16, "calibration_samples": 4},
        "evaluate": {"tasks": [str(own)]},
    }
    recipe = Recipe.model_validate(value)
    for followed in (recipe, Recipe.model_validate(yaml.safe_load(recipe.text()))):
        data = prepared(followed, trust_remote_code=False)
        assert (len(data.train), len(data.validation)) == (32, 4)
    asked = value | {"score": {"task": str(own), "train_samples": 33}}
    with pytest.raises(InputError, match="train_samples"):
        prepared(Recipe.model_validate(asked), trust_remote_code=False)


def test_a_default_is_not_raised(own):
    task = load_task(own)
    assert [task.default("train", count) for count in (1, 32, 200)] == [1, 32, 32]
