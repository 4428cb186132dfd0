"""Artifacts of a small model, for tests of what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from layerif.artifacts import (
    LayerScores,
    Manifest,
    Measurement,
    ModelInfo,
    Plan,
    ProjectionInfo,
    PrunedModule,
    Results,
    ScoringRecord,
    Setting,
)

SETTING = Setting(dtype="float32", device="cpu", versions={"python": "3.12.0", "torch": "2.9.0"})
# Layers of different size, as some architectures have them.
MODEL = ModelInfo(
    name="tiny/llama",
    architecture="LlamaForCausalLM",
    layers=5,
    layer_sizes=[3000, 3000, 5000, 3000, 7000],
)


def make_scores(influence: np.ndarray | None = None) -> LayerScores:
    """Scores of five layers with two projections each, on a dozen samples, of either sign."""
    generator = np.random.default_rng(0)
    if influence is None:
        influence = generator.normal(0.1, 1.0, (MODEL.layers, 12))
    share = generator.uniform(0.2, 0.8, influence.shape)
    both = np.stack([influence * share, influence * (1 - share)], axis=1)
    return LayerScores(
        influence=influence,
        projection_influence=both.reshape(-1, influence.shape[1]),
        train_losses=generator.uniform(0.5, 4.0, influence.shape[1]),
        projections=tuple(
            ProjectionInfo(layer=layer, name=name, numel=size // 2)
            for layer, size in enumerate(MODEL.layer_sizes)
            for name in ("self_attn.q_proj", "mlp.up_proj")
        ),
        model=MODEL,
        record=ScoringRecord(
            estimator="datainf",
            subspace="fresh_lora",
            subspace_options={"rank": 8, "alpha": 16.0, "seed": 0},
            block="matrix",
            damping=0.1,
            sign="helpful_positive",
            seed=3,
            max_length=256,
            task={"name": "mrpc", "origin": "Größe 1 → 2"},
            train_samples=influence.shape[1],
            validation_samples=4,
            dropped_train=[2, 9],
            dropped_validation=[],
            silent_blocks=["layers.0.mlp.up_proj"],
            validation_loss=1.25,
            seconds=0.125,
            setting=SETTING,
        ),
    )


def make_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "kind": "sparsity",
        "allocation": [0.4, 0.45, 0.5, 0.55, 0.6],
        "layer_sizes": MODEL.layer_sizes,
        "model": MODEL,
        "how": {"map": "layerif", "epsilon": 0.2},
    }
    return Plan(**values | changes)


def make_results() -> Results:
    return Results(
        model=MODEL.model_copy(update={"caveat": "dequantised from Q4_K_M"}),
        sparsity=0.5,
        measurements=[
            Measurement(name="wikitext2", metric="perplexity", value=54.7, count=10_000),
            Measurement(
                name="mrpc",
                metric="accuracy",
                value=0.625,
                low=0.5,
                high=0.75,
                count=80,
                details={"completion_loss": 0.7, "chance": 0.5, "dropped": [3]},
            ),
        ],
        how={"seed": 0, "samples": None, "data": {"mrpc": {"files": ["a.parquet"]}}},
        setting=SETTING,
    )


def make_manifest() -> Manifest:
    modules = [
        PrunedModule(module=f"layers.{layer}.q_proj", asked=size // 2, zeros=size // 2, numel=size)
        for layer, size in enumerate(MODEL.layer_sizes)
    ]
    return Manifest(
        model=MODEL,
        plan=make_plan(allocation=[0.5] * 5),
        method="wanda",
        sparsity=0.5,
        modules=modules,
        calibration={"samples": 8, "text": {"name": "wikitext2"}},
        seconds=1.5,
        setting=SETTING,
    )


def write(folder: Path, text: str) -> Path:
    """A file of an artifact as somebody may have written it."""
    path = folder / "plan.json"
    path.write_text(text, "utf-8")
    return path
