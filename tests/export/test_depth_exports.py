"""Plans of depth: slices for mergekit, and the layers that llama.cpp is to prune."""

from __future__ import annotations

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from helpers.tiny import SHAPE
from layerif.artifacts import Plan
from layerif.artifacts.plan import ModuleLevel
from layerif.errors import InputError
from layerif.export.exporting import export_plan
from layerif.model.layers import find_decoder_layers

LAYERS = 12


def skeleton(config=LlamaConfig, **more):
    with torch.device("meta"):
        shape = {**SHAPE, "num_hidden_layers": LAYERS, "head_dim": 8}
        return AutoModelForCausalLM.from_config(config(**{**shape, **more}))


def without(*dropped):
    return Plan(kind="depth", allocation=[int(layer not in dropped) for layer in range(LAYERS)])


@pytest.mark.parametrize("dropped", [(0,), (11,), (3, 4, 9), (1, 3, 5)])
def test_slices_hold_the_layers_that_are_kept(dropped):
    said = yaml.safe_load(export_plan("mergekit", without(*dropped), skeleton()).text)
    ranges = [piece["sources"][0]["layer_range"] for piece in said["slices"]]
    kept = [layer for first, end in ranges for layer in range(first, end)]
    assert kept == [layer for layer in range(LAYERS) if layer not in dropped]
    assert said["merge_method"] == "passthrough"


def test_mergekit_parses_it_itself():
    library = pytest.importorskip("mergekit.config", reason="mergekit is absent")
    text = export_plan("mergekit", without(3, 4), skeleton()).text
    parsed = library.MergeConfiguration.model_validate(yaml.safe_load(text))
    assert [s.sources[0].layer_range for s in parsed.slices] == [(0, 3), (5, LAYERS)]


def test_llamacpp_is_told_the_layers_to_prune():
    text = export_plan("llamacpp", without(3, 4, 9), skeleton()).text
    assert "--prune-layers 3,4,9 " in text


@pytest.mark.parametrize("engine", ["mergekit", "llamacpp"])
def test_layers_of_another_kind_may_not_change_places(engine):
    """Every sixth layer of Gemma 3 sees all tokens, by its place, with other frequencies."""
    model = skeleton(Gemma3TextConfig)
    with pytest.raises(InputError, match="sliding_attention"):
        export_plan(engine, without(2), model)
    # The last ones move nothing.
    assert export_plan(engine, without(10, 11), model).text


def test_a_plan_that_drops_nothing_or_everything_is_refused():
    with pytest.raises(InputError, match="every layer"):
        export_plan("llamacpp", without(), skeleton())
    with pytest.raises(InputError, match="every layer"):
        export_plan("mergekit", without(*range(LAYERS)), skeleton())


def test_a_layer_in_part_is_refused():
    model = skeleton()
    modules = [
        ModuleLevel(module=p.key, numel=p.numel, level=int(p.key != "layers.3.mlp.up_proj"))
        for p in find_decoder_layers(model).projections
    ]
    plan = Plan.of_modules(modules, kind="depth")
    with pytest.raises(InputError, match="rest of layer 3"):
        export_plan("mergekit", plan, model)
