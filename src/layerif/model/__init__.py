"""Opening a causal LM, and finding its decoder layers and their projections."""

from layerif.model.forwards import replaced_forwards
from layerif.model.gradient_checkpointing import checkpointed
from layerif.model.layers import DecoderLayers, Projection, find_decoder_layers, unwrapped
from layerif.model.modes import as_found, evaluation_mode
from layerif.model.opening import (
    Tokenizer,
    describe,
    input_device,
    open_model,
    open_skeleton,
    open_tokenizer,
    parse_device,
    setting,
)
from layerif.model.peft_adapters import (
    adapted_modules,
    refuse_adapted,
    with_adapter,
)
from layerif.model.quiet import quiet_transformers

__all__ = [
    "DecoderLayers",
    "Projection",
    "Tokenizer",
    "adapted_modules",
    "as_found",
    "checkpointed",
    "describe",
    "evaluation_mode",
    "find_decoder_layers",
    "input_device",
    "open_model",
    "open_skeleton",
    "open_tokenizer",
    "parse_device",
    "quiet_transformers",
    "refuse_adapted",
    "replaced_forwards",
    "setting",
    "unwrapped",
    "with_adapter",
]
