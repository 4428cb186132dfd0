"""Mixtures of LoRA experts, with a number of experts of its own in every decoder layer; and plain
LoRA with a rank of its own in every layer, to set beside them.

Importing this makes the method known to PEFT: `get_peft_model`, `PeftModel.from_pretrained` and
transformers' `add_adapter` then take a `LoraMoeConfig` as they take a `LoraConfig`.
"""

from layerif.adapters.callbacks import LogRouting, ScaleBalanceLoss
from layerif.adapters.config import LoraMoeConfig
from layerif.adapters.diagnostics import RoutingReport, routing
from layerif.adapters.layer import LoraMoeLinear, batch_state
from layerif.adapters.planned import lora_config_for, trainable_parameters, trained_beside_lora
from layerif.adapters.tuner import LoraMoeModel, register

register()

__all__ = [
    "LogRouting",
    "LoraMoeConfig",
    "LoraMoeLinear",
    "LoraMoeModel",
    "RoutingReport",
    "ScaleBalanceLoss",
    "batch_state",
    "lora_config_for",
    "routing",
    "trainable_parameters",
    "trained_beside_lora",
]
