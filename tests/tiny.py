"""Tiny random models of real architectures, and a real byte-level tokenizer, made on the spot."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

LAYERS = 3
SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Wide initial weights: with the usual 0.02 a tiny model gives nearly the same logits everywhere.
WIDE: dict[str, Any] = {"initializer_range": 0.2}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, **WIDE),
    # A window shorter than the texts, so that the sliding mask matters.
    "mistral": MistralConfig(**SHAPE, **WIDE, sliding_window=8),
    "gemma": GemmaConfig(**SHAPE, **WIDE, head_dim=8),
    "gemma2": Gemma2Config(**SHAPE, **WIDE, head_dim=8, sliding_window=8),
    "qwen2": Qwen2Config(**SHAPE, **WIDE),
    "qwen3": Qwen3Config(**SHAPE, **WIDE, head_dim=8),
    "phi": PhiConfig(**SHAPE, **WIDE),
    "opt": OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32, init_std=0.2, dropout=0.1),
    "gpt_neox": GPTNeoXConfig(**SHAPE, **WIDE),
    "gpt2": GPT2Config(
        vocab_size=260,
        n_embd=32,
        n_layer=LAYERS,
        n_head=4,
        n_positions=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **WIDE,
    ),
}
ARCHITECTURES = list(CONFIGS)
# Gemma 2 has eager attention only, whose softmax in float32 turns a fully masked row (padding
# outside the sliding window) of a float64 model into NaN.
FLOAT64_ARCHITECTURES = [name for name in ARCHITECTURES if name != "gemma2"]


def tiny_model(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of three layers with weights drawn from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(CONFIGS[architecture], dtype=torch.float32)
    return model.to(dtype).eval()


def tiny_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte; with `bos`, one that begins every text with <s>."""
    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
