"""The tiny llama and its tokenizer as a GGUF file, by the writer of the package gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from helpers.tiny import SHAPE, tiny_model, tiny_tokenizer

OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
INSIDE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_tiny_gguf(path: Path, *, without: str = "", **fields: Any) -> None:
    """Matrices of 32 inputs in Q8_0, the rest in float32; `without` the tensor of a name.

    `fields` replace the numbers that the header states, e.g. `block_count`.
    """
    stated = {
        "block_count": SHAPE["num_hidden_layers"],
        "context_length": SHAPE["max_position_embeddings"],
        "embedding_length": SHAPE["hidden_size"],
        "feed_forward_length": SHAPE["intermediate_size"],
        "head_count": SHAPE["num_attention_heads"],
        "head_count_kv": SHAPE["num_key_value_heads"],
    } | fields
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    for name, value in stated.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    vocabulary = tiny_tokenizer().get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, weight in tiny_model().state_dict().items():
        name, array = _named(key), weight.numpy()
        if name == without:
            continue
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = stated["head_count" if "attn_q" in name else "head_count_kv"]
            # llama.cpp pairs neighbouring rows for its rotation, transformers the halves of a head.
            halves = array.reshape(heads, 2, -1, array.shape[1])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        if name.startswith("blk") and array.ndim == 2 and array.shape[1] % 32 == 0:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _named(key: str) -> str:
    stem = key.removesuffix(".weight")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.weight"
    _, _, layer, inside = stem.split(".", 3)
    return f"blk.{layer}.{INSIDE[inside]}.weight"
