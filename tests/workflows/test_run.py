"""A run folder from Python."""

import numpy as np
import pytest

import layerif
from layerif.compress.registry import COMPRESSORS
from layerif.errors import InputError
from layerif.search.registry import KINDS

SCORING = {"rank": 2, "train_samples": 8, "validation_samples": 4}
PRUNING = {"calibration_samples": 4, "context_length": 32}


@pytest.fixture
def run(model, text, tmp_path):
    def made(**options):
        named = {"model": str(model), "task": "agreement", "calibration": str(text)}
        return layerif.Run(tmp_path / "run", **(named | options))

    return made


def test_everything_is_made_once_and_other_options_are_refused(run, capsys):
    mine = run()
    scores = mine.score(**SCORING)
    plan = layerif.allocate(scores, "sparsity", 0.5)
    manifest = mine.prune(plan, name="layerif", **PRUNING)
    assert manifest.sparsity == pytest.approx(0.5, abs=1e-3)
    results = mine.evaluate(["agreement"], of="layerif", samples=6)
    assert results.sparsity == pytest.approx(manifest.sparsity)
    alphas = mine.metric("pl_alpha", compat="reference")
    searched = mine.search(0.5, rounds=1, tokens=64, held_out_tokens=64, **PRUNING)
    capsys.readouterr()

    again = run()
    assert np.array_equal(again.score(**SCORING).influence, scores.influence)
    assert again.prune(plan, name="layerif", **PRUNING) == manifest
    assert again.evaluate(["agreement"], of="layerif", samples=6) == results
    assert again.metric("pl_alpha", compat="reference") == alphas
    assert again.search(0.5, rounds=1, tokens=64, held_out_tokens=64, **PRUNING) == searched
    assert capsys.readouterr().err.count("nothing is done again") == 5

    with pytest.raises(InputError, match="rank"):
        run().score(**SCORING | {"rank": 4})
    assert run(overwrite=True).score(**SCORING | {"rank": 4}).record.subspace_options["rank"] == 4


def test_an_adapter_is_trained_on_the_task(run):
    rows = {"train_samples": 8, "validation_samples": 0}
    record = run().finetune(None, rank=2, max_steps=1, batch_size=4, **rows)
    assert record.steps == 1
    assert run().finetune(None, rank=2, max_steps=1, batch_size=4, **rows) == record


def test_any_kind_that_is_registered_is_searched_for(run, monkeypatch):
    for registry in (KINDS, COMPRESSORS):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
        registry.register("zeros", registry.find("sparsity"))
    few = {"rounds": 1, "tokens": 64, "held_out_tokens": 64, **PRUNING}
    found = run().search(0.5, kind="zeros", name="zeros", **few)
    assert found.allocation == run().search(0.5, **few).allocation
    with pytest.raises(InputError, match="zeros"):
        run().search(0.5, kind="ones", name="ones", **few)


def test_what_is_not_there_is_refused(run):
    with pytest.raises(InputError, match="task"):
        run(task=None).score()
    with pytest.raises(InputError, match="'pruned'"):
        run().evaluate(["agreement"], of="pruned")
    with pytest.raises(InputError, match="dtype"):
        run(dtype="float8")


def test_layers_are_searched_for_and_dropped(run, capsys):
    mine = run()
    options = {"tokens": 64, "trial_tokens": 64, "held_out_tokens": 64, "context_length": 32}
    plan = mine.search(1, kind="depth", **options)
    made = mine.drop(plan)
    assert made.kept == [layer for layer, kept in enumerate(plan.allocation) if kept]
    results = mine.evaluate(["agreement"], of="dropped", samples=6)
    assert results.model.layers == 2
    capsys.readouterr()
    assert run().search(1, kind="depth", **options) == plan
    assert run().drop(plan) == made
    assert capsys.readouterr().err.count("nothing is done again") == 2
    with pytest.raises(InputError, match="candidates"):
        run().search(1, kind="depth", **options, candidates=2)
    with pytest.raises(InputError, match="rounds"):
        run().search(1, kind="depth", rounds=2)
