"""A model whose layers lie in several places is scored and measured like one that lies in one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

from helpers.scoring import measure
from helpers.tiny import tiny_model
from layerif.errors import InputError
from layerif.model.opening import input_device, open_model


def spread(folder, offloaded):
    """The tiny model by accelerate's hooks, with what is named read from disk at each call."""
    model = tiny_model(dtype=torch.float64)
    places = dict.fromkeys(
        ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu"
    )
    places |= {f"model.layers.{layer}": "cpu" for layer in range(3)}
    places |= dict.fromkeys(offloaded, "disk")
    return dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("offloaded", [["model.layers.1"], ["model.embed_tokens", "lm_head"]])
@pytest.mark.parametrize("options", [{}, {"subspace": "full"}])
def test_scores_do_not_depend_on_where_layers_lie(offloaded, options, tmp_path):
    expected = measure(tiny_model(dtype=torch.float64), **options)
    model = spread(tmp_path, offloaded)
    assert any(weight.is_meta for weight in model.parameters())
    assert input_device(model) == torch.device("cpu")
    found = measure(model, **options)
    error = np.abs(found.projection_influence - expected.projection_influence).max()
    assert error <= 1e-12 * np.abs(expected.projection_influence).max()


def test_a_map_opens_the_model(model):
    plain, _ = open_model(model)
    mapped, _ = open_model(model, device_map="auto")
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        assert torch.equal(mapped(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_a_map_and_a_device_are_one_too_many(model):
    with pytest.raises(InputError, match="'cpu'"):
        open_model(model, device_map="auto", device="cpu")
