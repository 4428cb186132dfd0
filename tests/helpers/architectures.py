"""A tiny random model of every causal architecture of the installed transformers.

Four layers, 32 wide, 260 tokens. Most configurations are made by giving each field that an
architecture knows its tiny value; `OWN` has what single architectures need beside that.
"""

from __future__ import annotations

import copy
import inspect
from contextlib import suppress
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS, WIDTH, INNER, TOKENS = 4, 32, 48, 260
ALWAYS = {"vocab_size": TOKENS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# By field, in whichever configuration has it.
FIELDS: dict[str, Any] = {
    **ALWAYS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    # experts: four, two of them for a token
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts"), 1),
    "moe_top_k": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    # latent attention
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 12,
    "v_head_dim": 8,
    # state spaces
    **dict.fromkeys(("mamba_d_state", "mamba_n_heads", "mamba_d_head"), 8),
    **dict.fromkeys(("mamba_num_heads", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_d_conv", "mamba_dt_rank"), 4),
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_d_ssm": 64,
    # linear attention
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "index_head_dim": 8,
    "index_n_heads": 2,
}


def in_turn(*kinds: str) -> list[str]:
    """The kinds of the layers, in turn."""
    return [kinds[layer % len(kinds)] for layer in range(LAYERS)]


SLIDING = in_turn("sliding_attention", "full_attention")
LINEAR = in_turn("linear_attention", "full_attention")
FULL = in_turn("full_attention")
MAMBA2 = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16}
NEMOTRON = {
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "moe_shared_expert_intermediate_size": 16,
}
GPT = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 256}
# What is rotated is as wide as qk_rope_head_dim, and each head has keys of its own.
LATENT = {"head_dim": 4, "num_key_value_heads": 4}
PER_LAYER = {
    "sliding_window": 8,
    "vocab_size_per_layer_input": TOKENS,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "layer_types": SLIDING,
}
WINDOWS = {"sliding_window": 8, "layer_types": SLIDING}
OWN: dict[str, dict[str, Any]] = {
    "afmoe": {**WINDOWS, "num_dense_layers": 1},
    "axk1": LATENT,
    "axk2": LATENT,
    "bamba": {"attn_layer_indices": [1, 3]},
    "bloom": {"n_layer": LAYERS, "n_head": 4},
    "codegen": {**GPT, "n_ctx": 256, "rotary_dim": 4},
    "cohere2": WINDOWS,
    "cohere_compass_text": {
        "layer_types": FULL,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in sorted(set(SLIDING))
        },
    },
    "ctrl": {**GPT, "dff": INNER},
    "cwm": WINDOWS,
    "dbrx": {
        "d_model": WIDTH,
        "n_heads": 4,
        "n_layers": LAYERS,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {
            "ffn_hidden_size": INNER,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "hidden_size": WIDTH,
        },
    },
    "deepseek_v2": {"first_k_dense_replace": 1, "num_key_value_heads": 4},
    "deepseek_v3": {**LATENT, "first_k_dense_replace": 1},
    "deepseek_v3-dense": {**LATENT, "first_k_dense_replace": LAYERS},
    "deepseek_v32": LATENT,
    "doge": {"sliding_window": None},
    "doge-moe": {"sliding_window": None, "is_moe": True, "num_experts": 16},
    "dots1": {"first_k_dense_replace": 1, "layer_types": FULL, "sliding_window": None},
    "dots3_note_text": LATENT,
    "ernie4_5_moe": {
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 3,
        "moe_layer_interval": 1,
    },
    "exaone4": {**WINDOWS, "sliding_window_pattern": 2},
    "falcon": {"ffn_hidden_size": INNER},
    "falcon-new": {
        "ffn_hidden_size": INNER,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
    },
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**WINDOWS, "query_pre_attn_scalar": 8},
    "gemma3n_text": {
        **PER_LAYER,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
        "intermediate_size": [INNER] * LAYERS,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "gemma4_text": {**PER_LAYER, "global_head_dim": 8},
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "glm4_moe": {"first_k_dense_replace": 1},
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT,
    "gpt2": GPT,
    "gpt_bigcode": {**GPT, "n_inner": INNER},
    "gpt_neo": {
        "num_layers": LAYERS,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 8,
    },
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "gpt_oss": WINDOWS,
    "gptj": {**GPT, "rotary_dim": 4},
    "granitemoehybrid": {
        "layer_types": in_turn("mamba", "attention"),
        "layers_block_type": in_turn("mamba", "attention"),
    },
    "granitemoehybrid-dense": {
        "layer_types": in_turn("attention"),
        "layers_block_type": in_turn("attention"),
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
    },
    "hunyuan_v1_moe": {
        "moe_topk": [2] * LAYERS,
        "moe_intermediate_size": [16] * LAYERS,
        "num_shared_expert": [1] * LAYERS,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "lfm2": {
        "layer_types": in_turn("conv", "full_attention"),
        "block_dim": WIDTH,
        "conv_dim": WIDTH,
        "conv_dim_out": WIDTH,
        "block_multiple_of": 8,
        "block_ff_dim": INNER,
    },
    "lfm2_moe": {"layer_types": in_turn("conv", "full_attention"), "num_dense_layers": 1},
    "llama4_text": {
        "intermediate_size_mlp": INNER,
        "no_rope_layers": [1, 1, 1, 0],
        "layer_types": [*in_turn("chunked_attention")[:-1], "full_attention"],
        "attention_chunk_size": 16,
        "moe_layers": [1, 3],
        "interleave_moe_layer_step": 2,
    },
    "longcat_flash": {
        **LATENT,
        "num_layers": 2,
        "ffn_hidden_size": INNER,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 2,
    },
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {**MAMBA2, "expand": 2},
    "minicpm3": LATENT,
    "minimax": {"layer_types": LINEAR, "block_size": 16},
    "ministral": WINDOWS,
    "mistral": {"sliding_window": 8},
    "modernbert-decoder": {
        "layer_types": SLIDING,
        "local_attention": 8,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "mpt": {
        "d_model": WIDTH,
        "n_heads": 4,
        "n_layers": LAYERS,
        "max_seq_len": 256,
        "expansion_ratio": 2,
    },
    "nemotron_h": {**NEMOTRON, "layers_block_type": ["mamba", "mlp", "attention", "mlp"]},
    "nemotron_h-moe": {**NEMOTRON, "layers_block_type": ["mamba", "moe", "attention", "moe"]},
    "olmo3": WINDOWS,
    "olmo_hybrid": {"layer_types": LINEAR},
    "openai-gpt": GPT,
    "opt": {"ffn_dim": INNER, "word_embed_proj_dim": WIDTH, "init_std": 0.2},
    "persimmon": {"num_key_value_heads": 4},
    "phimoe": {"sliding_window": None, "attention_bias": True},
    "qwen3_5_moe_text": {"layer_types": LINEAR},
    "qwen3_5_text": {"layer_types": LINEAR},
    "qwen3_next": {"layer_types": LINEAR},
    "qwen4_exp_text": {
        "layer_types": in_turn("linear_attention", "indexed_attention"),
        "indexer_n_heads": 2,
        "indexer_head_dim": 8,
        "indexer_kv_heads": 1,
        "indexer_budget": 8,
        "indexer_compress_ratio": 1,
    },
    "recurrent_gemma": {
        "lru_width": WIDTH,
        "attention_window_size": 8,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": WIDTH, "context_length": 256},
    "smollm3": {"sliding_window": None, "layer_types": FULL, "no_rope_layers": [1, 1, 1, 0]},
    "starcoder2": {"sliding_window": 8},
    "vaultgemma": {**WINDOWS, "query_pre_attn_scalar": 8},
    "xglm": {
        "d_model": WIDTH,
        "ffn_dim": INNER,
        "num_layers": LAYERS,
        "attention_heads": 4,
    },
    "xlstm": {"embedding_dim": WIDTH, "num_heads": 4, "num_blocks": LAYERS, "chunk_size": 16},
    "youtu": LATENT,
    "zamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "attention_head_dim": 16,
        "layers_block_type": in_turn("mamba", "hybrid"),
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "layers_block_type": in_turn("mamba", "hybrid"),
        "num_mem_blocks": 1,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "use_mem_rope": True,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "chunk_size": 16,
        "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
# A kind of model that several of the above are forms of.
FORMS = {
    "deepseek_v3-dense": "deepseek_v3",
    "doge-moe": "doge",
    "falcon-new": "falcon",
    "granitemoehybrid-dense": "granitemoehybrid",
    "nemotron_h-moe": "nemotron_h",
}
# Encoders, decoders of an encoder, and models of several kinds of input, whose language model has
# an id of its own.
OTHER_KINDS = """
    aria_text bart beam bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small
    blt camembert cpmant data2vec-text dots3_note electra emu3 ernie fuyu gemma3 gemma3n gemma4
    gemma4_assistant gemma4_unified gemma4_unified_assistant git got_ocr2 gpt-sw3 hrm_text llama4
    marian mbart megatron-bert mllama moshi moss_transcribe_diarize musicgen musicgen_melody mvp
    pegasus phi4_multimodal plbart prophetnet qwen3_5 qwen3_5_moe qwen4_exp reformer rembert roberta
    roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta xlm-roberta-xl xlnet xmod
"""


def architectures() -> list[str]:
    """Every causal language model of the installed transformers, by its model type."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *FORMS} - {*OTHER_KINDS.split()})


def tiny_config(name: str) -> Any:
    kind = CONFIG_MAPPING[FORMS.get(name, name)]
    known = set(inspect.signature(kind.__init__).parameters)
    with suppress(Exception):  # some have no configuration by default
        known |= {*kind().to_dict(), *getattr(kind, "attribute_map", {})}
    values = {field: value for field, value in FIELDS.items() if field in known}
    return kind(**copy.deepcopy({**values, **OWN.get(name, {}), **ALWAYS}))


def tiny_architecture(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model; what begins at zero is drawn too, since zeros hide gradients."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32).eval()
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2 if parameter.ndim > 1 else 0.05)
    return model.to(dtype)
