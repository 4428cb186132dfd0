"""A model held for quantisation: levels set, differences, and weights put back."""

from __future__ import annotations

import pytest
import torch

from helpers.mixtures import mixture
from helpers.quantised import packed_and_dense
from helpers.rounding import grid
from helpers.searching import same, states
from helpers.texts import SENTENCES
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.calibration.statistics import InputNorms
from layerif.calibration.text import calibration_batches
from layerif.calibration.walk import walk
from layerif.compress.quantization.compressor import QuantizationCompressor
from layerif.compress.quantization.registry import QUANTIZERS
from layerif.compress.quantization.rtn import rtn
from layerif.compress.registry import COMPRESSORS
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers

LEVELS = (2, 3, 4, 16)


def batches_for(model):
    return calibration_batches(
        model,
        tiny_tokenizer(),
        SENTENCES,
        samples=6,
        context_length=32,
        seed=0,
        batch_tokens=64,
    )[0]


def held(model, **options):
    layers = find_decoder_layers(model)
    held_by = COMPRESSORS.find("bits")
    return layers, held_by(model, layers, batches_for(model), grid(**options))


@pytest.mark.parametrize("method", QUANTIZERS.names())
def test_levels_are_set_and_the_model_is_as_before_afterwards(method):
    model = tiny_model()
    before = states(model)
    layers, holding = held(model, method=method)
    levels = [LEVELS[row % len(LEVELS)] for row in range(len(layers.projections))]
    with holding as compressor:
        differences = compressor.at(levels, lambda _row, one: (one.change(2, 4), one.at(4)))
        first = [p.weight.clone() for p in layers.projections]
        for projection, level, weight in zip(layers.projections, levels, first, strict=True):
            groups = weight[:, :32].unique(dim=1) if level == 16 else weight[:, :32]
            values = max(len(row.unique()) for row in groups)
            assert values <= 2**level
            original = before[f"model.{projection.key}.weight"]
            assert torch.equal(weight, original) == (level == 16)
        compressor.at([16] * len(levels))
        assert same(states(model), before)
        compressor.at(levels)
        assert all(map(torch.equal, first, [p.weight for p in layers.projections]))
        for change, at_four in differences:
            assert change().shape == at_four.shape
    assert same(states(model), before)


def test_each_projection_is_rounded_on_what_the_rounded_layers_below_hand_on():
    model, by_hand = tiny_model(), tiny_model()
    layers, holding = held(model, method="rtn")
    count = len(layers.projections)
    own = find_decoder_layers(by_hand)
    with torch.no_grad():
        for visit in walk(by_hand, own, batches_for(by_hand)):
            statistics = InputNorms(own.of(visit.index))
            visit.observe(statistics)
            for p in own.of(visit.index):
                p.weight.copy_(rtn(p.weight, statistics.norms(p) ** 2, 3, grid()).decoded())
    with holding as compressor:
        compressor.at([3] * count)
        assert same(states(model), states(by_hand))


def test_without_text_ranges_are_minimum_to_maximum():
    model = tiny_model()
    layers, _ = held(model)
    options = grid(method="rtn", ranges="minmax")
    with QuantizationCompressor.held(model, layers, [], options) as compressor:
        compressor.at([4] * len(layers.projections))
        for p, original in zip(layers.projections, compressor.originals, strict=True):
            low, high = original[:, :32].aminmax(dim=1)
            step = (high.clamp(min=0) - low.clamp(max=0)) / 15
            away = (p.weight - original)[:, :32].abs().amax(dim=1)
            # Half a step, and what the zero point's rounding moves an end by.
            assert bool((away <= 1.01 * step).all())


def test_experts_are_rounded_one_by_one():
    model = mixture("qwen2_moe")
    before = states(model)
    layers, holding = held(model)
    with holding as compressor:
        kept = compressor.at([3] * len(layers.projections), lambda _row, one: one.damping)
        assert all(damping > 0 for damping in kept)
        for p in layers.projections:
            assert len(p.weight[0, :32].unique()) <= 8
    assert same(states(model), before)


def test_weights_that_are_quantised_already_are_refused():
    packed, _ = packed_and_dense()
    with pytest.raises(InputError, match="quantised"):
        QuantizationCompressor.held(packed, find_decoder_layers(packed), [], grid())
