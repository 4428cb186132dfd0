"""Tiny random models of real architectures, and a real byte-level tokenizer, made on the spot."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
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
SPECIAL: dict[str, Any] = {key: SHAPE[key] for key in SHAPE if key.endswith("token_id")}
# Wide initial weights: with the usual 0.02 a tiny model gives nearly the same logits everywhere.
WIDE: dict[str, Any] = {"initializer_range": 0.2}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, **WIDE),
    # A window shorter than the texts, so that the sliding mask matters.
    "mistral": MistralConfig(**SHAPE, **WIDE, sliding_window=8),
    "gemma": GemmaConfig(**SHAPE, **WIDE, head_dim=8),
    "gemma2": Gemma2Config(**SHAPE, **WIDE, head_dim=8, sliding_window=8),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        **WIDE,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2": Qwen2Config(**SHAPE, **WIDE),
    "qwen3": Qwen3Config(**SHAPE, **WIDE, head_dim=8),
    "phi": PhiConfig(**SHAPE, **WIDE),
    # q, k and v are one projection, and so are gate and up.
    "phi3": Phi3Config(**SHAPE, **WIDE),
    "opt": OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32, init_std=0.2, dropout=0.1),
    "gpt_neox": GPTNeoXConfig(**SHAPE, **WIDE),
    "gpt2": GPT2Config(
        vocab_size=260, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=128, **SPECIAL, **WIDE
    ),
    # Distances bias the attention of these two, which take no position ids.
    "bloom": BloomConfig(
        vocab_size=260, hidden_size=32, n_layer=LAYERS, n_head=4, **SPECIAL, **WIDE
    ),
    "mpt": MptConfig(
        vocab_size=260, d_model=32, n_layers=LAYERS, n_heads=4, max_seq_len=128, **SPECIAL, **WIDE
    ),
    "falcon": FalconConfig(**SHAPE, **WIDE, ffn_hidden_size=48),
}
ARCHITECTURES = list(CONFIGS)
# Attention that is eager only takes the softmax in float32, whatever the model's dtype.
EAGER_ARCHITECTURES = ["gemma2", "bloom", "mpt"]
FLOAT64_ARCHITECTURES = [name for name in ARCHITECTURES if name not in EAGER_ARCHITECTURES]


def float64_tolerance(architecture: str) -> float:
    """How near two ways to the same number come in a float64 model."""
    return 1e-9 if architecture in FLOAT64_ARCHITECTURES else 1e-5


def tiny_model(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of three layers with weights drawn from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(CONFIGS[architecture], dtype=torch.float32)
    return model.to(dtype).eval()


def use_mlps_twice(model: PreTrainedModel) -> None:
    """Call every MLP twice in its layer, on two inputs: each projection of it serves both uses."""
    for layer in model.model.layers:
        once = layer.mlp.forward
        layer.mlp.forward = lambda x, once=once: once(x + once(x))


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


def vision_model() -> PreTrainedModel:
    """Gemma 3 with a vision tower of as many layers as the text model, and larger ones."""
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    config = Gemma3Config(
        text_config=CONFIGS["gemma3"].to_dict(),
        vision_config=vision.to_dict(),
        mm_tokens_per_image=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return AutoModelForCausalLM.from_config(config).eval()
