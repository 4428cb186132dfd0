"""The stage of a recipe that trains the plans of experts."""

from __future__ import annotations

import json

import pytest

from helpers.recipes import recipe
from layerif.artifacts import Plan


def test_the_plan_of_experts_is_trained_where_a_recipe_asks_for_it(layerif, model, text, tmp_path):
    stage = {
        "plans": ["lora"],
        "seeds": [0, 1],
        "train_samples": 8,
        "validation_samples": 2,
        "samples": 6,
        "rank": 2,
        "max_steps": 2,
        "batch_size": 4,
    }
    path = recipe(model, text, tmp_path, finetune=stage)
    status, out, err = layerif("run", path)
    assert status == 0, err
    assert "Experts trained by plan, 6 test rows" in out
    assert "agreement answer loss: LayerIF" in out
    folder = tmp_path / "run" / "finetuned"
    assert Plan.load(folder / "LayerIF.json") == Plan.load(tmp_path / "run" / "experts.json")
    value = json.loads(layerif("run", path, "--json")[1])
    assert set(value["finetuned"]) == {"uniform", "lora", "LayerIF"}
    assert len(value["finetuned"]["lora"]["figures"][0][2]) == 2


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a number of at least 1"),
        ({"plans": ["moola"]}, "there is no experts plan 'moola'"),
        ({"plans": ["mine/layerif.json"]}, "would both be called"),
        ({"max_length": 2}, "none of the 8 training samples"),
        ({"seeds": [1, 1]}, "seeds are to be each once"),
        ({"train_samples": 10**6}, "fewer than the 1000000 asked for"),
        ({"epoch": 2}, "finetune.epoch: there is no such field; did you mean epochs"),
    ],
)
def test_a_fine_tuning_that_cannot_be_is_refused_first(
    layerif, model, text, tmp_path, stage, message
):
    stage = {"train_samples": 8, "validation_samples": 2} | stage
    status, _, err = layerif("run", recipe(model, text, tmp_path, finetune=stage))
    assert status == 2
    assert message in err
    assert not (tmp_path / "run").exists()


def test_fine_tuning_needs_a_plan_of_experts(layerif, model, text, tmp_path):
    path = recipe(model, text, tmp_path, finetune={"max_steps": 1}, experts=None)
    assert "add the stage `experts`" in layerif("run", path)[2]
