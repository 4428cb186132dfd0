"""Quantising a whole model by a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

import layerif
from helpers.mixtures import mixture
from helpers.quantised import packed_and_dense
from helpers.rounded import MIXED, mixed_plan, quantize_tiny
from helpers.rounding import grid
from helpers.searching import same, states
from helpers.texts import SENTENCES
from helpers.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer
from layerif.artifacts import Plan, QuantizedManifest
from layerif.calibration.text import calibration_batches
from layerif.compress.quantization.base import Quantizable
from layerif.compress.quantization.compressor import QuantizationCompressor
from layerif.compress.quantization.registry import QUANTIZERS
from layerif.compress.quantization.rtn import Rounded, rtn
from layerif.core.checkpoint import Steps
from layerif.errors import InputError, NumericalError
from layerif.model.layers import find_decoder_layers
from layerif.plans.maps.stored import stored_bytes


def distinct(weight, width):
    """The most values that a group of a row has."""
    return max(len(part.unique()) for row in weight for part in row.split(width))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_plan_is_met_exactly_in_every_architecture(architecture):
    model = tiny_model(architecture)
    plan = mixed_plan(model)
    before = states(model)
    own = {id(p.parameter) for p in find_decoder_layers(model).projections}
    manifest = quantize_tiny(model, plan)
    for row, (projection, entry) in enumerate(
        zip(find_decoder_layers(model).projections, manifest.modules, strict=True)
    ):
        assert entry.module == projection.key
        assert entry.bits == plan.level_of(projection.key) == MIXED[row % len(MIXED)]
        assert entry.bytes == stored_bytes(
            projection.out_features, projection.in_features, entry.bits, grid()
        )
        if entry.bits == 16:
            assert entry.error is None
        else:
            assert distinct(projection.weight, 32) <= 2**entry.bits
            assert 0 < entry.error < 1
    assert manifest.bits == pytest.approx(plan.realised_total)
    assert manifest.bytes == sum(entry.bytes for entry in manifest.modules)
    for name, parameter in model.named_parameters():
        assert id(parameter) in own or torch.equal(parameter, before[name])


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_it_is_what_the_compressor_of_a_search_makes(method):
    model, other = tiny_model(), tiny_model()
    plan = mixed_plan(model)
    quantize_tiny(model, plan, method=method)
    layers = find_decoder_layers(other)
    batches, _ = calibration_batches(
        other,
        tiny_tokenizer(),
        SENTENCES,
        samples=6,
        context_length=32,
        seed=0,
        batch_tokens=64,
    )
    with QuantizationCompressor.held(other, layers, batches, grid(method=method)) as compressor:
        compressor.at([int(plan.level_of(p.key)) for p in layers.projections])
        assert same(states(model), states(other))


def test_more_bits_lose_less_and_gptq_less_than_rounding():
    lost = {}
    for method in ("rtn", "gptq"):
        for bits in (2, 4, 8):
            manifest = quantize_tiny(tiny_model(), bits, method=method)
            errors = [entry.error for entry in manifest.modules]
            lost[method, bits] = sum(errors) / len(errors)
    assert lost["rtn", 2] > 10 * lost["rtn", 4] > 1000 * lost["rtn", 8]
    assert lost["gptq", 4] < lost["rtn", 4]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_run_cut_short_goes_on_to_the_same_weights(tmp_path, method):
    whole, cut, finished = tiny_model(), tiny_model(), []
    plan = mixed_plan(whole)
    expected = quantize_tiny(whole, plan, method=method, embeddings=4)

    class Stopping(Steps):
        def save(self, step, tensors):
            super().save(step, tensors)
            finished.append(step)
            if step == "layer-0001":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_tiny(cut, plan, method=method, embeddings=4, steps=Stopping(tmp_path))
    again, integers = tiny_model(), {}
    manifest = quantize_tiny(
        again,
        plan,
        method=method,
        embeddings=4,
        steps=Steps(tmp_path),
        keep=integers.__setitem__,
    )
    assert finished == ["layer-0000", "layer-0001"]
    assert same(states(again), states(whole))
    assert [m.error for m in manifest.modules] == [m.error for m in expected.modules]
    for projection in find_decoder_layers(again).projections:
        if plan.level_of(projection.key) < 16:
            assert torch.equal(integers[projection.key].decoded(), projection.weight)
        else:
            assert projection.key not in integers


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_are_named_and_rounded_where_asked(tied):
    model = tiny_model("gemma" if tied else "llama")
    before = model.get_input_embeddings().weight.clone()
    left = quantize_tiny(model, 8).others
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert [other.bits for other in left] == [None] * (1 if tied else 2)
    assert left[0].bytes == before.numel() * 4
    assert left[0].tied == tied
    rounded = quantize_tiny(model, 8, embeddings=3).others
    expected = rtn(before, None, 3, grid()).decoded()
    assert torch.equal(model.get_input_embeddings().weight, expected)
    assert rounded[0].name == "model.embed_tokens.weight"
    assert rounded[0].bytes == stored_bytes(260, 32, 3, grid())
    assert distinct(model.get_output_embeddings().weight, 32) <= 8


def test_without_text_only_rounding_from_minimum_to_maximum_is_possible():
    model = tiny_model()
    manifest = quantize_tiny(model, 4, method="rtn", ranges="minmax", calibration=None)
    assert manifest.calibration == {}
    assert all(entry.error is None for entry in manifest.modules)
    for method in ("rtn", "gptq"):
        with pytest.raises(InputError, match="calibration"):
            quantize_tiny(tiny_model(), 4, method=method, calibration=None)


def test_experts_of_a_mixture():
    model = mixture("mixtral", torch.float32)
    manifest = quantize_tiny(model, 3)
    for projection, entry in zip(
        find_decoder_layers(model).projections, manifest.modules, strict=True
    ):
        assert distinct(projection.weight, 32) <= 8
        assert entry.bytes == stored_bytes(
            projection.out_features, projection.in_features, 3, grid()
        )


def test_narrow_models_are_rounded_to_values_of_their_own_precision():
    model = tiny_model(dtype=torch.bfloat16)
    manifest = quantize_tiny(model, 3)
    assert manifest.precision == "bfloat16"
    for projection in find_decoder_layers(model).projections:
        assert distinct(projection.weight, 32) <= 8


@pytest.mark.parametrize("bits", [1, 9, 15, 17, 0, 3.5])
def test_bits_that_no_grid_has_are_refused(bits):
    with pytest.raises(InputError, match="bits"):
        quantize_tiny(tiny_model(), bits)


def test_plans_of_other_models_and_kinds_are_refused():
    model = tiny_model()
    with pytest.raises(InputError, match="bits"):
        quantize_tiny(model, Plan(kind="sparsity", allocation=[0.5] * 3))
    with pytest.raises(InputError, match="layers"):
        quantize_tiny(model, Plan(kind="bits", allocation=[4, 4]))
    plan = mixed_plan(model).model_dump()
    plan["modules"][0]["module"] = "layers.0.self_attn.r_proj"
    with pytest.raises(InputError, match="r_proj"):
        quantize_tiny(model, Plan(**plan))
    packed, _ = packed_and_dense()
    with pytest.raises(InputError, match="quantised"):
        quantize_tiny(packed)


def test_a_quantiser_of_ones_own_is_used_by_name(monkeypatch):
    class Coarse:
        """Two bits fewer than asked for, by minimum and maximum."""

        def statistics(self, grid):
            return None

        def quantizable(self, projection, original, statistics, grid):
            own = Rounded(original, grid, None)
            return FewerBits(original, grid, own)

    @dataclass(frozen=True, eq=False)
    class FewerBits(Quantizable):
        own: Rounded

        def coded(self, bits):
            return replace(self.own.coded(bits - 2), bits=bits)

    monkeypatch.setattr(QUANTIZERS, "_registered", dict(QUANTIZERS._registered))
    layerif.register_quantizer("coarse", Coarse())
    model = tiny_model()
    manifest = layerif.quantize(model, 4, method="coarse", group_size=32)
    assert manifest.method == "coarse"
    for projection in find_decoder_layers(model).projections:
        assert 3 <= distinct(projection.weight, 32) <= 4


def test_weights_that_are_not_finite_are_named():
    model = tiny_model()
    find_decoder_layers(model).projections[3].weight[0, 0] = float("inf")
    with pytest.raises(NumericalError, match="o_proj"):
        quantize_tiny(model, method="rtn", ranges="minmax", calibration=None)
    model = tiny_model()
    find_decoder_layers(model).projections[3].weight[0, 0] = 1e7
    with pytest.raises(NumericalError, match="bfloat16"):
        quantize_tiny(model, method="rtn", ranges="minmax", calibration=None)


def test_a_manifest_says_what_is_stored_and_nothing_else(tmp_path):
    manifest = quantize_tiny(tiny_model(), mixed_plan(tiny_model()))
    manifest.save(tmp_path / "layerif_manifest.json")
    again = QuantizedManifest.of_folder(tmp_path)
    assert again == manifest
    wrong = manifest.model_dump()
    wrong["modules"][0]["bytes"] += 1
    with pytest.raises(ValueError, match="bytes"):
        QuantizedManifest(**wrong)
    with pytest.raises(InputError, match="quantize"):
        QuantizedManifest.of_folder(tmp_path / "none")
