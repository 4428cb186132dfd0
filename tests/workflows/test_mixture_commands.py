"""The commands, one after the other, on the folder of a tiny mixture of experts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import layerif as api
from helpers.architectures import tiny_architecture
from helpers.mixtures import MIXTURES
from helpers.recipes import recipe
from helpers.tiny import tiny_tokenizer
from layerif.adapters import trainable_parameters
from layerif.artifacts import Finetuning, GroundTruth, LayerScores, Manifest, Plan, Results
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model

CALIBRATION = ["--calibration-samples", 6, "--context-length", 32]


@pytest.fixture(params=MIXTURES)
def folder(request, tmp_path):
    tiny_architecture(request.param).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_from_the_doctor_to_a_merged_adapter(layerif, folder, text, tmp_path):
    def command(*words):
        status, out, err = layerif(*words)
        assert status == 0, (words, err)
        return out

    few = ["--task", "agreement", "--train-samples", 6, "--validation-samples", 3]
    run = tmp_path / "run"
    command("doctor", folder, "--rank", 2)
    command("score", "--model", folder, *few, "--rank", 2, "--keep-gradients", "--out", run)
    scores = LayerScores.load(run)
    layers = find_decoder_layers(open_model(folder, device="cpu")[0])
    assert [f"layers.{p.layer}.{p.name}" for p in scores.projections] == [
        p.key for p in layers.projections
    ]
    command("solve", run, "--out", tmp_path / "solved", "--estimator", "exact", "--damping", 1)
    other = ["--keep", "disk", "--batch-tokens", 64, "--subspace", "adapter", "--warmup-steps", 2]
    command("score", "--model", folder, *few, "--rank", 2, *other, "--out", tmp_path / "warm")
    owl = tmp_path / "owl.json"
    measured = ["--calibration", text, *CALIBRATION, "--out", owl]
    command("metric", "outlier_ratio", "--model", folder, *measured)
    plan = tmp_path / "sparsity.json"
    command("allocate", "sparsity", run, "--sparsity", 0.5, "--out", plan)
    command("prune", "--model", folder, "--plan", plan, "--calibration", text, *CALIBRATION,
            "--out", tmp_path / "pruned")  # fmt: skip
    manifest = Manifest.load(tmp_path / "pruned" / "layerif_manifest.json")
    size = sum(entry.numel for entry in manifest.modules)
    assert size == sum(p.numel for p in layers.projections)
    assert sum(entry.zeros for entry in manifest.modules) == pytest.approx(0.5 * size, abs=50)
    command("verify", tmp_path / "pruned")
    ranks = tmp_path / "ranks.json"
    command("allocate", "ranks", run, "--total", 8, "--out", ranks)
    command("finetune", "--model", tmp_path / "pruned", *few, "--plan", ranks, "--max-steps", 2,
            "--out", tmp_path / "adapter")  # fmt: skip
    command("merge", tmp_path / "pruned", "--adapter", tmp_path / "adapter",
            "--out", tmp_path / "merged")  # fmt: skip
    command("verify", tmp_path / "merged")
    command("evaluate", "--model", tmp_path / "merged", "--tasks", "agreement", "--samples", 4,
            "--out", tmp_path / "results.json")  # fmt: skip
    assert json.loads((tmp_path / "results.json").read_text())
    assert Plan.load(ranks).kind == "ranks"


def test_commands_that_prune_search_and_train_run_in_bfloat16(layerif, text, tmp_path):
    model = tiny_architecture("mixtral", torch.bfloat16)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    layers = find_decoder_layers(model)
    few = ["--task", "agreement", "--train-samples", 4, "--validation-samples", 2]
    small = ["--calibration", text, "--calibration-samples", 2, "--context-length", 32]

    def command(*words):
        status, out, err = layerif(*words, "--model", folder, "--dtype", "bfloat16")
        assert status == 0, (words, err)
        return out

    out = tmp_path / "adapter"
    command("finetune", *few, "--adapt-experts", "--rank", 2, "--max-steps", 1, "--out", out)
    record = Finetuning.load(out / "layerif_finetuning.json")
    plan = Plan(kind="ranks", allocation=[2] * len(layers))
    trained = trainable_parameters(plan, model, adapt_experts=True)
    assert (record.trainable_parameters, record.setting.dtype) == (trained.sum(), "bfloat16")
    adapter = load_file(out / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in adapter.values()) == trained.sum()
    assert all(bool(tensor.isfinite().all()) for tensor in adapter.values())

    owl, out = tmp_path / "owl.json", tmp_path / "truth"
    command("metric", "outlier_ratio", *small, "--out", owl)
    command("validate", "--scores", owl, *small, "--out", out)
    more = ["--truth", "capacity", "--train-steps", 1, "--rank", 2]
    command("validate", "--scores", owl, *few, *more, "--out", tmp_path / "capacity")
    for path in (
        *(out / f"{kind}.json" for kind in ("isolated", "operating_point")),
        tmp_path / "capacity" / "capacity.json",
    ):
        truth = GroundTruth.load(path)
        assert truth.setting.dtype == "bfloat16"
        assert truth.values.any()
        assert np.isfinite(truth.matrix).all()

    found, held = tmp_path / "searched.json", ["--held-out-tokens", 64]
    command("search", "sparsity", "--sparsity", 0.5, "--rounds", 1, "--tokens", 64, *held, *small,
            "--out", found)  # fmt: skip
    searched = Plan.load(found)
    assert [entry.module for entry in searched.modules] == [p.key for p in layers.projections]
    assert searched.realised_total == pytest.approx(0.5, abs=1e-3)

    measured = ["--tasks", "agreement", "--samples", 2]
    command("compare", "sparsity", "--sparsity", 0.5, "--plans", "owl", "--tries", 1, *held, *small,
            *measured, "--out", tmp_path / "compared")  # fmt: skip
    for name, sparsity in (("dense", 0), ("uniform", 0.5), ("owl", 0.5)):
        results = Results.load(tmp_path / "compared" / f"{name}-results.json")
        assert results.sparsity == pytest.approx(sparsity, abs=2e-3)
        assert results.setting.dtype == "bfloat16"

    evaluated = {"tasks": ["agreement"], "samples": 2}
    path = recipe(folder, text, tmp_path, dtype="bfloat16", evaluate=evaluated)
    status, _, err = layerif("run", path)
    assert status == 0, err
    made = next((tmp_path / "run").glob("**/layerif_manifest.json"))
    assert Manifest.load(made).setting.dtype == "bfloat16"

    run = api.Run(
        tmp_path / "mine", model=str(folder), task="agreement", calibration=text, dtype="bfloat16"
    )
    manifest = run.prune(searched, name="searched", calibration_samples=2, context_length=32)
    results = run.evaluate(["agreement"], of="searched", samples=2)
    assert results.sparsity == pytest.approx(manifest.sparsity) == pytest.approx(0.5, abs=1e-3)
    again, _ = open_model(tmp_path / "mine" / "searched", dtype="bfloat16", device="cpu")
    for entry, projection in zip(
        manifest.modules, find_decoder_layers(again).projections, strict=True
    ):
        assert entry.zeros == int((projection.weight == 0).sum())
