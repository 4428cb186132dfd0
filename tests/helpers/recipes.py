"""A small recipe of every stage but fine-tuning."""

from __future__ import annotations

import yaml


def recipe(model, text, folder, **changes):
    value = {
        "model": str(model),
        "out": str(folder / "run"),
        "score": {"task": "agreement", "train_samples": 6, "validation_samples": 3, "rank": 2},
        "sparsity": {"target": 0.5, "epsilon": 0.2},
        "experts": {"total": 9},
        "ranks": {"total": 24, "orientation": "inverse"},
        "prune": {"calibration": str(text), "samples": 4, "context_length": 32},
        "evaluate": {"tasks": ["agreement", str(text)], "samples": 8, "context_length": 32},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(value | changes))
    return path
