"""Where gradients are kept changes nothing: memory, disk, or nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.scoring import (
    TRAIN,
    VALIDATION,
    WANTED,
    literal_gradients,
    measure,
    published_datainf,
)
from helpers.tiny import tiny_model
from layerif.core.checkpoint import resumable, steps_folder
from layerif.errors import InputError
from layerif.influence import keeping
from layerif.influence.store import DiskStore, MemoryStore
from layerif.influence.subspaces.base import Matrix
from layerif.influence.subspaces.full import FullWeights
from layerif.model.layers import find_decoder_layers

ESTIMATORS = ["datainf", "grad_dot", "cosine", "ekfac"]


def close(found, expected, tolerance=1e-10):
    for name in ("projection_influence", "influence", "train_losses"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_a_store_on_disk_holds_what_one_in_memory_holds(tmp_path):
    matrices = [Matrix(f"m{i}", i, (5, i + 2)) for i in range(4)]
    stores = (
        MemoryStore(matrices, 7, torch.float32),
        DiskStore(tmp_path, matrices, 7, torch.float32),
    )
    for first, count in ((3, 4), (0, 3)):
        gradients = [torch.randn(count, matrix.size) for matrix in matrices]
        for store in stores:
            store.put(first, gradients)
    again = DiskStore(tmp_path, matrices, 7, torch.float32)  # opening it loses nothing
    for row in range(4):
        kept = stores[0].of(row)
        for read in (stores[1].of(row), again.of(row)):
            assert read.shape == kept.shape
            for index in (slice(None), slice(2, 5), (slice(None), slice(1, 3))):
                assert torch.equal(read[index], kept[index])
            assert torch.equal(torch.cat([piece.clone() for piece in read.split(3)]), kept)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "exact", "cg"])
def test_disk_is_memory_to_the_bit(estimator, tmp_path):
    model = tiny_model(dtype=torch.float64)
    reference = measure(model, estimator=estimator, keep="memory")
    with resumable(tmp_path / "run", WANTED) as steps:
        kept = measure(model, estimator=estimator, keep="disk", steps=steps)
    assert np.array_equal(kept.projection_influence, reference.projection_influence)


@pytest.mark.parametrize("block", ["matrix", "layer"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_passes_are_memory(estimator, block):
    model = tiny_model(dtype=torch.float64)
    options = {"estimator": estimator, "block": block, "batch_tokens": 200}
    close(measure(model, keep="passes", **options), measure(model, keep="memory", **options))


def test_a_run_goes_on_with_the_gradients_on_disk(tmp_path):
    model = tiny_model(dtype=torch.float64)
    reference = measure(model, batch_tokens=80)
    forward, calls = model.forward, []

    def stop_later(*args, **kwargs):
        calls.append(None)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    model.forward = stop_later
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "run", WANTED) as steps:
        measure(model, batch_tokens=80, steps=steps)
    assert (steps_folder(tmp_path / "run") / "gradients.bin").exists()
    with resumable(tmp_path / "run", WANTED) as steps:
        resumed = measure(model, batch_tokens=80, steps=steps)
    assert np.array_equal(resumed.influence, reference.influence)
    assert len(calls) < 2 * 14, "finished batches were not run again"
    assert not steps_folder(tmp_path / "run").exists()


@pytest.mark.parametrize("stops_at", [0.25, 0.4, 0.6, 1.0])
@pytest.mark.parametrize("estimator", ["datainf", "ekfac"])
def test_passes_go_on_where_they_were(estimator, stops_at, tmp_path, monkeypatch):
    for name in ("INTERVAL", "WORK_TO_WRITING"):
        monkeypatch.setattr(keeping, name, 0)  # so that every batch is kept
    model = tiny_model(dtype=torch.float64)
    options = {"keep": "passes", "estimator": estimator, "batch_tokens": 80}
    forward, calls, last = model.forward, [], None

    def stop_later(*args, **kwargs):
        calls.append(None)
        if len(calls) == last:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    model.forward = stop_later
    reference = measure(model, **options)
    whole = len(calls)
    calls.clear()
    last = round(stops_at * whole)
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "run", WANTED) as steps:
        measure(model, steps=steps, **options)
    with resumable(tmp_path / "run", WANTED) as steps:
        resumed = measure(model, steps=steps, **options)
    assert np.array_equal(resumed.projection_influence, reference.projection_influence)
    assert np.array_equal(resumed.train_losses, reference.train_losses)
    assert resumed.record.validation_loss == reference.record.validation_loss
    assert len(calls) == whole + 1, "the batch that was cut short, and no other, was run twice"


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "opt"])
def test_full_weights_equal_the_literal_gradients(architecture):
    model = tiny_model(architecture, torch.float64)
    found = measure(model, subspace=FullWeights())
    weights = [p.module.weight for p in find_decoder_layers(model).projections]
    train, validation = (
        [block.flatten(1).numpy() for block in literal_gradients(model, samples, weights)]
        for samples in (TRAIN, VALIDATION)
    )
    oracle = np.stack([published_datainf(g, v) for g, v in zip(train, validation, strict=True)])
    assert np.abs(found.projection_influence - oracle).max() <= 1e-9 * np.abs(oracle).max()
    dots = measure(model, subspace="full", estimator="grad_dot", block="layer")
    expected = np.stack([g @ v.mean(0) for g, v in zip(train, validation, strict=True)])
    assert np.abs(dots.projection_influence - expected).max() <= 1e-9 * np.abs(expected).max()


def test_full_gradients_cannot_be_kept():
    with pytest.raises(InputError, match="never formed"):
        measure(tiny_model(), subspace="full", keep="memory")
    with pytest.raises(InputError, match="kept"):
        measure(tiny_model(), subspace="full", estimator="cg")


def test_what_is_asked_for_is_used_within_the_memory_given(capsys):
    measure(tiny_model(), memory=1e-6)
    assert "not kept" in capsys.readouterr().err
    measure(tiny_model())
    assert "in memory" in capsys.readouterr().err
    with pytest.raises(InputError, match="run folder"):
        measure(tiny_model(), keep="disk")
