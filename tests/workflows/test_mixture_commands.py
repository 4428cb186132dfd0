"""The commands, one after the other, on the folder of a tiny mixture of experts."""

from __future__ import annotations

import json

import pytest

from helpers.architectures import tiny_architecture
from helpers.mixtures import MIXTURES
from helpers.tiny import tiny_tokenizer
from layerif.artifacts import LayerScores, Manifest, Plan
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
