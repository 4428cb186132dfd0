"""Several processes that want one GGUF file on a cold cache: one converts it, the others wait."""

from __future__ import annotations

import multiprocessing
import uuid

import gguf as ggml
import torch

from layerif.model import gguf, open_model
from tiny import LAYERS, SHAPE, tiny_model, tiny_tokenizer

PLACES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
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


def write_gguf(path):
    """The tiny Llama as llama.cpp would have it, in float32."""
    writer = ggml.GGUFWriter(str(path), "llama")
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(SHAPE["vocab_size"])
    vocabulary = tiny_tokenizer().get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.__getitem__), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in tiny_model().state_dict().items():
        place = name.removesuffix(".weight")
        if place not in PLACES:
            _, _, layer, inside = place.split(".", 3)
            place = f"blk.{layer}.{PLACES[inside]}"
        writer.add_tensor(f"{PLACES.get(place, place)}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_one_of_several_processes_converts(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setenv("LAYERIF_CACHE", str(tmp_path / "cache"))
    convert = gguf._convert

    def counted(*args):
        (tmp_path / f"converted-{uuid.uuid4()}").touch()
        convert(*args)

    monkeypatch.setattr(gguf, "_convert", counted)
    context = multiprocessing.get_context("fork")
    others = [
        context.Process(target=gguf.converted, args=(tmp_path / "tiny.gguf",)) for _ in range(3)
    ]
    for other in others:
        other.start()
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert len(list(tmp_path.glob("converted-*"))) == 1
    (folder,) = (tmp_path / "cache" / "gguf").iterdir()
    model, _ = open_model(folder)
    ours = tiny_model().state_dict()["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(model.state_dict()["model.layers.1.mlp.up_proj.weight"], ours)
