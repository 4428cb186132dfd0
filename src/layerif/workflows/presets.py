"""Options that belong together, by one word; what is given beside it wins."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from layerif.core.choices import Preset, check_choice

# LayerIF's fine-tuning. Not mirrored: a warm-up of 100 steps, more than some of its runs have.
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
