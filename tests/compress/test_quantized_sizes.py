"""Bits that a size leaves room for: the plan's bytes and all else never exceed it."""

from __future__ import annotations

import pytest

import layerif
from helpers.tiny import tiny_model
from layerif.compress.quantization.options import GridOptions
from layerif.compress.quantization.sizes import bits_within, plan_bytes
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe


@pytest.mark.parametrize("how", [{}, {"symmetric": True}, {"offset": "minimum"}])
@pytest.mark.parametrize("group_size", [32, 128, 0])
@pytest.mark.parametrize("over", [1.0, 1.1, 1.37, 2.0])
def test_a_size_is_kept(how, group_size, over):
    model, grid = tiny_model(), GridOptions(group_size=group_size, **how)
    layers = find_decoder_layers(model)

    def taken(bits):
        plan = layerif.allocate(
            [1.0] * len(layers), "bits", bits, map="uniform", model=describe(model)
        )
        return plan_bytes(plan, layers, grid) + rest

    numel = sum(p.numel for p in layers.projections)
    rest = 4 * (sum(p.numel() for p in model.parameters()) - numel)
    size = int(taken(2) * over) + 100
    found = bits_within(f"{size}B", model, grid)
    assert taken(found) <= size
    # No whole level more fits for every weight.
    assert found == 16 or taken(min(int(found) + 1, 8)) > size or found > 8


@pytest.mark.parametrize(("size", "says"), [("large", "unit"), ("10", "unit"), ("1kB", "bits")])
def test_what_is_no_size_or_too_small_is_refused(size, says):
    with pytest.raises(InputError, match=says):
        bits_within(size, tiny_model(), GridOptions())
