"""Plans of depth: which layers are kept, so many of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import layerif
from layerif.artifacts import MetricScores, ModelInfo, ModuleLevel, Plan, Setting
from layerif.errors import InputError
from layerif.plans.maps.depth import last, spaced


def plan(scores, total, **options):
    return layerif.allocate(scores, "depth", total, **options)


def test_the_highest_scores_are_kept():
    assert plan([3, 1, 2, 5], 2).allocation == [1, 0, 0, 1]
    assert plan([3, 1, 2, 5], 2, orientation="inverse").allocation == [0, 1, 1, 0]
    assert plan([1, 2, 1, 1], 3).allocation == [1, 1, 1, 0]  # of equal ones the lower layers
    assert plan([3, 1], 2).allocation == [1, 1]


def test_block_influence_with_it_is_shortgpt():
    info = ModelInfo(name="m", architecture="M", layers=3, layer_sizes=[4, 0, 4])
    scores = MetricScores(
        metric="block_influence",
        options={},
        scores=[0.5, 0.7, 0.1],
        model=info,
        seconds=1.0,
        setting=Setting(dtype="float32", device="cpu", versions={}),
    )
    found = plan(scores, 2)
    # A layer without a projection is a layer all the same.
    assert found.allocation == [1, 1, 0]
    assert found.realised_total == 2
    assert found.how["metric"] == "block_influence"


def test_without_scores():
    assert plan([1, 1, 1, 1, 1, 1], 4, map="uniform").allocation == [1, 0, 1, 1, 0, 1]
    assert plan([1, 1, 1, 1, 1, 1], 4, map="last").allocation == [1, 1, 0, 0, 1, 1]
    assert last(4, 1).tolist() == [1, 0, 0, 0]
    assert last(4, 2).tolist() == [1, 0, 0, 1]
    with pytest.raises(InputError, match="tell"):
        plan([1, 1, 1], 2)
    assert plan([1, 1, 1], 2, on_constant="uniform").allocation == [1, 0, 1]


@given(st.integers(1, 90), st.data())
def test_the_total_is_exact(count, data):
    total = data.draw(st.integers(1, count))
    for found in (spaced(count, total), last(count, total)):
        assert found.sum() == total
        assert {*found.tolist()} <= {0, 1}


def test_totals_and_levels_that_are_none_are_refused():
    for total in (0, 4, 1.5):
        with pytest.raises(InputError, match="whole number"):
            plan([1, 2, 3], total)
    with pytest.raises(InputError, match="0, which drops"):
        Plan.parse({"kind": "depth", "allocation": [1, 0.5]}, "here")
    with pytest.raises(InputError, match="total"):
        Plan.parse({"kind": "depth", "allocation": [1, 0], "total": 2}, "here")


def test_sublayers_make_a_layers_share():
    levels = [("layers.0.attn", 1, 3), ("layers.0.mlp", 0, 1), ("layers.1.attn", 1, 4)]
    modules = [ModuleLevel(module=m, level=level, numel=n) for m, level, n in levels]
    found = Plan.of_modules(modules, kind="depth")
    assert found.allocation == [0.75, 1]
    assert found.realised_total == 1.75
    assert found.level_of("layers.0.mlp") == 0


def test_a_layer_without_sublayers_is_kept():
    info = ModelInfo(name="m", architecture="M", layers=2, layer_sizes=[0, 4])
    modules = [ModuleLevel(module="layers.1.mlp", level=0, numel=4)]
    assert Plan.of_modules(modules, kind="depth", model=info).allocation == [1, 0]
