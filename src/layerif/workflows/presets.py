"""Options that belong together, by one word; what is given beside it wins."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from layerif.core.choices import Preset, check_choice

# LayerIF's setting (arXiv 2505.23811; its scripts where the paper is silent): 84 steps are its
# three epochs of MRPC. Not mirrored: dropout of 0.05 in the warm-up, and an end-of-text token.
PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "paper": {
        "style": "alpaca",
        "train_samples": 300,
        "validation_samples": 96,
        "subspace": "adapter",
        "rank": 8,
        "alpha": 16.0,
        "warmup_steps": 84,
        "estimator": "datainf",
        "damping": 0.1,
        "block": "matrix",
        "max_length": 256,
    }
}

# Its fine-tuning. Not mirrored: a warm-up of 100 steps, more than some of its runs have in all.
FINETUNING_PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "paper": {
        "style": "alpaca",
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.05,
        "top_k": 2,
        "balance": 0.0,
        "epochs": 3.0,
        "batch_size": 128,
        "learning_rate": 3e-4,
        "max_length": 256,
        "append_eos": True,
    }
}


def finetuning_preset(preset: Preset | None, given: Container[str]) -> dict[str, Any]:
    """The options of a preset of fine-tuning but for those that are given.

    Raises:
        InputError: there is no such preset.
    """
    if preset is None:
        return {}
    check_choice(preset, Preset, "preset")
    return {n: value for n, value in FINETUNING_PRESETS[preset].items() if n not in given}


def preset_options(preset: Preset | None, given: Container[str]) -> dict[str, Any]:
    """The options of a preset but for those that are given; none without a preset.

    An adapter that is given, or another subspace, takes the place of the preset's warm-up.

    Raises:
        InputError: there is no such preset.
    """
    if preset is None:
        return {}
    check_choice(preset, Preset, "preset")
    chosen = {name: value for name, value in PRESETS[preset].items() if name not in given}
    if "adapter" in given or "subspace" in given:
        chosen.pop("warmup_steps", None)
    return chosen
