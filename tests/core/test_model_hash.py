"""The hash of a model: of its content, read again where anything of it has changed."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch

from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import hash_model
from layerif.core import fingerprint
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import open_model


@pytest.fixture
def hashed(monkeypatch):
    """The hashes begun since; one of a model that is known begins none."""
    begun = []
    sha256 = hashlib.sha256

    def counted(*args):
        begun.append(args)
        return sha256(*args)

    monkeypatch.setattr(fingerprint.hashlib, "sha256", counted)
    return begun


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_hashed_once(hashed, dtype):
    model = tiny_model(dtype=dtype)
    assert hash_model(model) == hash_model(model)
    assert len(hashed) == 1
    assert hash_model(tiny_model(dtype=dtype)) == hash_model(model)


def changes(model):
    """Ways to change a model, of which torch counts some alone as a new version of a tensor."""
    weight = find_decoder_layers(model).projections[1].weight
    yield weight.data[0].zero_
    yield lambda: weight.data.__iadd__(1e-3)
    yield lambda: weight.data.view(torch.int32)[0, 0].bitwise_xor_(1)
    yield lambda: weight.data.copy_(torch.roll(weight.data, 1, 0) * 2)
    yield lambda: setattr(model.config, "rope_theta", 5.0)


def test_any_change_is_seen():
    model, seen = tiny_model(), set()
    model.config = copy.deepcopy(model.config)  # which models of one architecture share
    seen.add(hash_model(model))
    for number, change in enumerate(changes(model), start=2):
        change()
        seen.add(hash_model(model))
        assert len(seen) == number


def test_of_the_same_files_the_hash_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERIF_CACHE", str(tmp_path / "cache"))
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")

    def opened():
        return open_model(tmp_path / "model")[0]

    expected = hash_model(opened())
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    assert kept.read_text() == expected
    kept.write_text("0" * 64)
    assert hash_model(opened()) == "0" * 64, "not read again"
    kept.write_text("half of one")
    assert hash_model(opened()) == expected
    # Weights that are changed in memory, or on disk, are another model's.
    model = opened()
    find_decoder_layers(model).projections[0].weight.data.mul_(2)
    assert hash_model(model) not in (expected, "0" * 64)
    kept.write_text("0" * 64)
    model.save_pretrained(tmp_path / "model")
    assert hash_model(opened()) == hash_model(model)
