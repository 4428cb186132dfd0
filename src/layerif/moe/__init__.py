"""Mixtures of LoRA experts, with a number of experts of its own in every decoder layer.

Importing this makes the method known to PEFT: `get_peft_model`, `PeftModel.from_pretrained` and
transformers' `add_adapter` then take a `LoraMoeConfig` as they take a `LoraConfig`.
"""

from layerif.moe.callbacks import LogRouting, ScaleBalanceLoss
from layerif.moe.config import LoraMoeConfig
from layerif.moe.diagnostics import RoutingReport, routing
from layerif.moe.layer import LoraMoeLinear, batch_state
from layerif.moe.registration import register
from layerif.moe.tuner import LoraMoeModel

register()

__all__ = [
    "LogRouting",
    "LoraMoeConfig",
    "LoraMoeLinear",
    "LoraMoeModel",
    "RoutingReport",
    "ScaleBalanceLoss",
    "batch_state",
    "routing",
]
