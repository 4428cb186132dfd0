"""From a search for layers to a folder without them, on the command line."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.marginal_models import corpus
from layerif.artifacts import DroppedLayers, Plan
from layerif.model.opening import open_model

SMALL = ["--tokens", 128, "--context-length", 32, "--held-out-tokens", 128]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(corpus().calibration))
    return ["--calibration", path]


def test_search_drop_and_verify(layerif, model, text, tmp_path):
    plan, out = tmp_path / "depth.json", tmp_path / "cut"
    searching = ["search", "depth", "--model", model, "--drop", 1, *text, *SMALL]
    status, printed, err = layerif(*searching, "--trial-tokens", 64, "--out", plan)
    assert status == 0, err
    assert "2 in all" in printed
    found = Plan.load(plan)
    assert sorted(found.allocation) == [0, 1, 1]
    status, _, err = layerif(*searching, "--trial-tokens", 64, "--out", plan)
    assert status == 0, err
    assert "already holds" in err
    status, _, err = layerif("drop", "--model", model, "--plan", plan, "--out", out)
    assert status == 0, err
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 2
    status, printed, err = layerif("verify", out)
    assert status == 0, err
    assert "2 of 3 layers" in printed + err
    status, printed, err = layerif("verify", out, "--json")
    assert json.loads(printed)["ok"], err


def test_a_folder_that_is_not_as_it_says_is_found_out(layerif, model, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "cut"
    Plan(kind="depth", allocation=[1, 0, 1]).save(plan)
    status, _, err = layerif("drop", "--model", model, "--plan", plan, "--out", out)
    assert status == 0, err
    path = out / "layerif_manifest.json"
    record = DroppedLayers.load(path)
    plan = record.plan.model_copy(update={"allocation": [1, 0, 0]})
    record.model_copy(update={"plan": plan, "kept": [0]}).save(path)
    status, printed, err = layerif("verify", out)
    assert status == 3
    assert "2 layers" in printed + err


def test_options_without_effect_and_bad_plans_are_refused(layerif, model, text, tmp_path):
    base = ["search", "depth", "--model", model, *text, *SMALL]
    status, _, err = layerif(*base, "--drop", 1, "--strategy", "taylor", "--candidates", 2)
    assert status == 2
    assert "--candidates has no effect" in err
    status, _, err = layerif(*base, "--drop", 3)
    assert status == 2
    assert "cannot be dropped" in err
    plan = tmp_path / "plan.json"
    Plan(kind="sparsity", allocation=[0.5, 0.5, 0.5]).save(plan)
    status, _, err = layerif("drop", "--model", model, "--plan", plan, "--out", tmp_path / "m")
    assert status == 2
    assert not (tmp_path / "m").exists()


def test_a_plan_from_a_metric(layerif, model, text, tmp_path):
    scores = tmp_path / "influence.json"
    words = ["--calibration-samples", 4, "--context-length", 32]
    metric = ["metric", "block_influence", "--model", model, *text, *words, "--out", scores]
    status, _, err = layerif(*metric)
    assert status == 0, err
    status, printed, err = layerif("allocate", "depth", scores, "--total", 2, "--json")
    assert status == 0, err
    assert sum(Plan.model_validate_json(printed).allocation) == 2


@pytest.mark.parametrize("on", ["agreement", "text"])
def test_a_lora_heals_and_is_merged(on, layerif, model, text, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "cut"
    Plan(kind="depth", allocation=[1, 0, 1]).save(plan)
    status, printed, err = layerif("drop", "--model", model, "--plan", plan, "--out", out)
    assert status == 0, err
    assert "of 3 layers, the first being 0: 1. " in " ".join(printed.split())
    task = ["--task", on] if on == "agreement" else ["--task", text[-1], "--max-length", 32]
    training = [*task, "--train-samples", 4, "--validation-samples", 0, "--rank", 2]
    adapter = tmp_path / "adapter"
    tuning = ["finetune", "--model", out, *training, "--max-steps", 2, "--out", adapter]
    status, _, err = layerif(*tuning, "--learning-rate", 0.05)
    assert status == 0, err
    healed = tmp_path / "healed"
    status, printed, err = layerif("merge", out, "--adapter", adapter, "--out", healed)
    assert status == 0, err
    assert "is merged" in " ".join((printed + err).split())
    record = DroppedLayers.of_folder(healed)
    assert record.kept == [0, 2]
    assert record.merged == str(adapter)
    one, other = (AutoModelForCausalLM.from_pretrained(path) for path in (out, healed))
    weights = [m.model.layers[1].mlp.up_proj.weight for m in (one, other)]
    assert not torch.equal(*weights)
    expected = open_model(out, adapter=adapter)[0](torch.arange(5, 25)[None]).logits
    torch.testing.assert_close(other(torch.arange(5, 25)[None]).logits, expected)
    assert layerif("verify", healed)[0] == 0
