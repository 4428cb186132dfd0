"""GGUF files: converted to the model they hold, or refused by what is damaged in them."""

from __future__ import annotations

import random
import struct

import pytest
import torch
from gguf import GGUFReader

from helpers.tiny import tiny_model
from helpers.tiny_gguf import write_tiny_gguf
from layerif.errors import InputError
from layerif.model import gguf
from layerif.model.gguf_header import stored_tensors
from layerif.model.opening import describe, open_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_header_is_read_as_by_the_package_gguf(whole):
    expected = [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name) for t in GGUFReader(whole).tensors
    ]
    assert [(t.name, t.shape, t.quantisation) for t in stored_tensors(whole)] == expected


def test_a_file_opens_as_the_model_it_holds_and_says_how_its_layers_are_stored(whole, cache):
    model, tokenizer = open_model(whole, device="cpu")
    for name, weight in tiny_model().state_dict().items():
        # Q8_0 has 127 levels on either side of zero.
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0.006)
    assert tokenizer("ab cd")["input_ids"][0] == 259
    # Of 7,680 weights in a layer's matrices the 48 x 32 of down_proj have no whole blocks.
    assert describe(model).caveat == (
        "dequantised from a GGUF file with layers of 80 % Q8_0, 20 % F32"
    )
    [folder] = (cache / "gguf").glob("tiny-*")
    weights = folder / "model.safetensors"
    half = weights.read_bytes()[:500]
    weights.unlink()  # the model that is open has its weights in the old file
    weights.write_bytes(half)
    again, _ = open_model(whole, device="cpu")
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_quantisations_are_named_by_their_share_of_the_layers(whole):
    tensors = [t for t in stored_tensors(whole) if "down" not in t.name]
    assert gguf.caveat(gguf._by_share(tensors)) == "dequantised from a Q8_0 GGUF file"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"block_count": 5}, "lacks weights"),
        ({"block_count": 0}, "block_count"),
        ({"block_count": 2**31}, "block_count"),
        ({"embedding_length": 2**20}, "model"),
        ({"without": "blk.1.ffn_up.weight"}, "lacks weights"),
    ],
)
def test_a_header_that_contradicts_the_weights_is_refused(tmp_path, cache, fields, word):
    write_tiny_gguf(tmp_path / "odd.gguf", **fields)
    with pytest.raises(InputError, match=word):
        open_model(tmp_path / "odd.gguf")
    assert not list(cache.glob("gguf/*"))


def test_any_damage_to_a_header_is_refused_or_leaves_a_header(whole, tmp_path):
    """Bits, bytes and lengths at random: the reader of the package gguf fills the memory."""
    intact, draw, path = whole.read_bytes(), random.Random(0), tmp_path / "damaged.gguf"
    end = GGUFReader(whole).data_offset
    refused = []
    for _ in range(300):
        data, at = bytearray(intact), draw.randrange(4, end)
        match draw.randrange(5):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                data[at : at + 8] = struct.pack("<Q", draw.choice([0, 2**31, 2**63, 10**6]))
            case 2:
                del data[draw.randrange(end) :]
            case 3:
                data[at:at] = draw.randbytes(draw.randrange(1, 9))
            case 4:
                del data[at : at + draw.randrange(1, 9)]
        path.write_bytes(data)
        try:
            stored_tensors(path)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert max(map(len, refused)) <= 600


def test_a_file_cut_off_within_its_weights_or_empty_is_refused(whole, tmp_path):
    cut = tmp_path / "cut.gguf"
    for size in (0, 4, 30, whole.stat().st_size - 1):
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(InputError, match=r"GGUF"):
            stored_tensors(cut)


def test_weights_that_are_not_finite_are_refused(whole, tmp_path, cache):
    data = bytearray(whole.read_bytes())
    norm = next(t for t in GGUFReader(whole).tensors if t.name == "output_norm.weight")
    data[norm.data_offset : norm.data_offset + 4] = struct.pack("<f", float("nan"))
    (tmp_path / "nan.gguf").write_bytes(data)
    with pytest.raises(InputError, match=r"norm.*finite"):
        open_model(tmp_path / "nan.gguf")
