"""SmolLM2-135M-Instruct: the whole way on a real language model, trimmed to a few minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from helpers.scoring import autograd_gradients, published_datainf
from layerif import load_corpus, load_task, open_model, prune, score
from layerif.artifacts import LayerScores, Manifest, Plan, Results
from layerif.evaluation.accuracy import task_measurement
from layerif.evaluation.generation import generated_accuracy
from layerif.evaluation.perplexity import perplexity
from layerif.model.layers import find_decoder_layers

pytestmark = [pytest.mark.slow, pytest.mark.real_model]
ROOT = Path(__file__).resolve().parent.parent


def test_influence_equals_the_published_procedure(smollm2):
    """A batch of one, a dictionary of gradients, DataInf's double loop: all 210 projections."""
    model, tokenizer = smollm2
    task = load_task("agreement")
    train, validation = task.sample("train", 6, 0), task.sample("validation", 3, 0)
    scores = score(model, tokenizer, train, validation, rank=4, alpha=8.0, seed=3)
    gradients = [autograd_gradients(model, tokenizer, s) for s in (train, validation)]
    oracle = np.stack(
        [
            published_datainf(*(g.astype(np.float64) for g in pair))
            for pair in zip(*gradients, strict=True)
        ]
    )
    assert np.abs(scores.projection_influence - oracle).max() <= 1e-4 * np.abs(oracle).max()


def test_the_model_is_well_above_chance_on_agreement(smollm2):
    rows = load_task("agreement").sample("test", 120, 0)
    found = task_measurement(*smollm2, rows, name="agreement")
    assert found.value > 0.7
    assert found.details["chance"] == 0.5


def test_the_model_is_between_chance_and_ceiling_on_facts(smollm2):
    rows = load_task("facts").sample("test", 60, 0)
    found = task_measurement(*smollm2, rows, name="facts")
    assert 0.4 < found.value < 0.85
    assert found.details["chance"] == 0.25


def test_the_model_writes_answers_that_can_be_read(smollm2, data_dir):
    """It follows the form of the answers, and hardly knows them; the batch makes no difference."""
    model, tokenizer = smollm2
    task = load_task("commonsense_qa", data_dir=data_dir, style="chat", tokenizer=tokenizer)
    rows = task.sample("test", 24, 0)
    found = generated_accuracy(model, tokenizer, rows)
    assert found.details["parse_failures"] <= 2
    assert 0 < found.value < 0.6
    few = generated_accuracy(model, tokenizer, rows[:3], batch_tokens=1)
    assert few.details["replies"] == found.details["replies"][:3]
    assert few.outcomes.correct == found.outcomes.correct[:3]
    first = tokenizer(rows[0].prompt, return_tensors="pt")["input_ids"]
    reply = tokenizer(found.details["replies"][0])["input_ids"]
    with torch.inference_mode():
        whole = torch.cat([first, torch.tensor([reply])], dim=1)
        predicted = model(whole, use_cache=False).logits[0, first.shape[1] - 1 :].argmax(-1)
    assert predicted.tolist() == [*reply, tokenizer.eos_token_id]


def test_half_the_weights_go_and_the_model_still_speaks(smollm2):
    corpus = load_corpus("python-docs")
    model, tokenizer = open_model("smollm2")
    plan = Plan(kind="sparsity", allocation=[0.45] * 10 + [0.5] * 10 + [0.55] * 10)
    manifest = prune(model, plan, tokenizer=tokenizer, calibration=corpus, calibration_samples=8)
    assert manifest.sparsity == pytest.approx(0.5, abs=1e-5)
    for projection, entry in zip(
        find_decoder_layers(model).projections, manifest.modules, strict=True
    ):
        assert entry.zeros == int((projection.weight == 0).sum())
        asked = plan.allocation[projection.layer] * projection.numel
        assert abs(entry.zeros - asked) <= 0.5
    text = corpus.text("evaluation")
    dense = perplexity(*smollm2, text, max_tokens=2048).value
    pruned = perplexity(model, tokenizer, text, max_tokens=2048).value
    assert dense < 20
    assert 1.2 * dense < pruned < 6 * dense


def test_the_demo_recipe_runs_from_the_command_line(tmp_path):
    """`layerif run` on the demo's own recipe with everything made small."""
    recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    recipe["score"] |= {"train_samples": 12, "validation_samples": 6}
    recipe["sparsity"] |= {"rounds": 1, "round_tokens": 256}
    recipe["prune"] |= {"calibration_samples": 2, "context_length": 256}
    recipe["bits"] |= {"calibration_samples": 2, "context_length": 256, "held_out_tokens": 256}
    recipe["bits"] |= {"tokens": 256, "ranges": "minmax"}
    recipe["evaluate"] |= {"samples": 12, "max_tokens": 512}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    layerif = Path(sys.executable).with_name("layerif")
    done = subprocess.run(
        [layerif, "run", path, "--out", run], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "dense",
        "uniform",
        "OWL",
        "marginal",
        "LayerIF",
        "dequantised from a Q4_1 GGUF file",
    ):
        assert word in done.stdout
    assert LayerScores.load(run).influence.shape == (30, 12)
    assert Plan.load(run / "experts.json").realised_total == 150
    results = {name: Results.load(run / f"{name}-results.json") for name in ("dense", "layerif")}
    assert results["dense"].sparsity < 0.01
    assert results["layerif"].sparsity == pytest.approx(0.5, abs=1e-3)
    manifest = Manifest.load(run / "pruned" / "layerif_manifest.json")
    reopened = AutoModelForCausalLM.from_pretrained(run / "pruned")
    counted = [int((p.weight == 0).sum()) for p in find_decoder_layers(reopened).projections]
    assert counted == [entry.zeros for entry in manifest.modules]
