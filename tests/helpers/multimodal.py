"""Tiny random models of language beside images or sound, of the installed transformers' kinds.

Each part of a configuration is made as `helpers.architectures` makes those of language models: its
fields get tiny values by their names. The other parts have fewer layers than the language model.
"""

from __future__ import annotations

import copy
import inspect
from contextlib import suppress
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from helpers.architectures import ALWAYS, FIELDS, INNER, LATENT, OWN, WIDTH, tiny_config

# Of the parts that see or hear.
SENSES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "out_hidden_size"), WIDTH),
    **dict.fromkeys(("projection_dim", "projector_input_dim", "projector_output_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim"), INNER),
    "mlp_ratio": 2,
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads"), 4),
    **dict.fromkeys(("attention_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    "vision_output_dim": WIDTH,
    "head_dim": 8,
    "image_size": 16,
    "patch_size": 8,
    "num_position_embeddings": 16,
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0],
    "initializer_range": 0.2,
}
DEPTHS = ("num_hidden_layers", "num_layers", "depth", "encoder_layers", "decoder_layers")
TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
SOUNDS = ("audio_token_id", "audio_token_index")
# Positions of text, height and width share what is rotated.
SECTIONS = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
}
TEXTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"), SECTIONS),
    **dict.fromkeys(("glm4v_text", "glm_ocr_text", "paddleocr_vl_text"), SECTIONS),
    "mistral_large4_text": LATENT,
    "glm4v_moe_text": {
        "rope_parameters": {**SECTIONS["rope_parameters"], "mrope_section": [1, 0, 1]}
    },
}
# What is small and runs on text alone.
NAMES = """
    aria aya_vision cohere2_vision cohere_compass cosmos3_omni deepseek_vl exaone4_5 fuyu gemma3
    gemma4 glm46v glm4v glm4v_moe glm_ocr glmasr glmga got_ocr2 granite_docling granite_speech
    granite_speech_plus hyperclovax_vision_v2 idefics2 idefics3 inkling_mm_model internvl
    kimi_k25 lfm2_vl lfm3_vl lighton_ocr llama4 llava llava_next llava_next_video
    llava_onevision minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl mistral3 mistral_large4
    moss_transcribe_diarize paddleocr_vl pp_chart2table qianfan_ocr qwen2_5_omni_thinker
    qwen2_5_vl qwen2_audio qwen2_vl qwen3_5 qwen3_5_moe qwen3_asr qwen3_omni_moe_thinker
    qwen3_vl qwen3_vl_moe qwen4_exp smolvlm video_llama_3 video_llava vipllava voxtral
"""
MULTIMODAL = NAMES.split()


def multimodal_config(name: str, depth: int = 2) -> Any:
    """The configuration of a tiny model.

    Args:
        name: its kind.
        depth: layers of the parts that see or hear.
    """
    kind = CONFIG_MAPPING[name]
    default = _default(kind)
    parts = {}
    for key, part in kind.sub_configs.items():
        own = type(getattr(default, key, None)) if part is AutoConfig else part
        if hasattr(own, "model_type"):
            parts[key] = _part(own, depth, language="text" in key)
    fields = _fields(kind)
    own = dict.fromkeys((field for field in (*TOKENS, *SOUNDS) if field in fields), 3)
    if not any("text" in key for key in kind.sub_configs):
        own |= {field: value for field, value in FIELDS.items() if field in fields}
    return kind(**parts, **own)


def tiny_multimodal(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model; what begins at zero is drawn too, since zeros hide gradients."""
    config = multimodal_config(name)
    kind = multimodal_class(config)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        model = kind._from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2 if parameter.ndim > 1 else 0.05)
    return model if dtype == torch.float32 else model.to(dtype)


def multimodal_class(config: Any) -> Any:
    """The class of a configuration, with all of its parts."""
    known = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING
    return next(each[type(config)] for each in known if type(config) in each)


def _part(kind: Any, depth: int, *, language: bool) -> dict[str, Any]:
    name = kind.model_type
    if language and name in OWN:
        return tiny_config(name).to_dict()
    fields, default = _fields(kind), _default(kind)
    stated = {} if default is None else default.to_dict()
    values = {
        field: _like(stated.get(field), value)
        for field, value in (FIELDS if language else SENSES | dict.fromkeys(DEPTHS, depth)).items()
        if field in fields
    }
    if language:
        values |= {**TEXTS.get(name, {}), **ALWAYS}
    return kind(**copy.deepcopy(values)).to_dict()


def _like(default: Any, value: Any) -> Any:
    """A value in the form of the default: some configurations take nothing else."""
    if isinstance(default, float) and isinstance(value, int):
        return float(value)
    if isinstance(default, list | tuple) and isinstance(value, int | float):
        return [value] * len(default)
    return value


def _fields(kind: Any) -> set[str]:
    fields = set(inspect.signature(kind.__init__).parameters)
    with suppress(Exception):  # some have no configuration by default
        fields |= {*kind().to_dict(), *getattr(kind, "attribute_map", {})}
    return fields


def _default(kind: Any) -> Any:
    with suppress(Exception):
        return kind()
    return None
