"""PEFT: the rank and alpha patterns of a `LoraConfig`, as JSON."""

from __future__ import annotations

import json

from layerif.export.base import Export, Request, Written
from layerif.export.options import LoraOptions


def ranks(request: Request) -> Written:
    """What `LoraConfig` is to be given for a plan of ranks."""
    from layerif.adapters.planned import lora_config_for

    config = lora_config_for(
        request.plan, request.model, alpha_per_rank=request.options.alpha_per_rank
    )
    named = config.target_modules or ()
    said = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "target_modules": named if isinstance(named, str) else sorted(named),
        "fan_in_fan_out": config.fan_in_fan_out,
    }
    notes = []
    if len(set(request.plan.allocation)) > 1:
        notes = [
            "llama.cpp and vLLM read no alpha_pattern and give mixed ranks a wrong scale: export "
            "the trained adapter by `layerif export lora` before it is served"
        ]
    usage = "from peft import LoraConfig; LoraConfig(**json.load(open('{file}')))"
    return Written(json.dumps(said, indent=2) + "\n", usage, tuple(notes))


PEFT = Export("PEFT", {"ranks": ranks}, LoraOptions)
