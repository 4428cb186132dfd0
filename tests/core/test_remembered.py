"""What was computed is looked up, by all that it depends on; two processes do not do it twice."""

from __future__ import annotations

import multiprocessing
import time

import pytest
import torch

from helpers.damage import DAMAGES
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import Fingerprint
from layerif.core.caching import remembered
from layerif.core.checkpoint import steps_folder
from layerif.errors import NumericalError
from layerif.evaluation.perplexity import perplexity
from layerif.evaluation.summed import Cache

WANTED = Fingerprint(model="m", data="d", options={"batch_tokens": 8})
TEXT = " ".join(f"{i} squared is {i * i}." for i in range(40))


def never(_steps):
    raise AssertionError("this was computed before")


def test_the_second_time_it_is_looked_up(tmp_path):
    first = remembered(tmp_path, WANTED, lambda _: {"x": torch.tensor([1.5, 2.5])})
    again = remembered(tmp_path, WANTED, never)
    assert torch.equal(first["x"], again["x"])
    other = WANTED.model_copy(update={"data": "e"})
    assert remembered(tmp_path, other, lambda _: {"x": torch.zeros(1)})["x"].tolist() == [0]
    assert not list(tmp_path.glob(".*")), "no steps and no lock are left"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_computed_again(damage, tmp_path):
    first = remembered(tmp_path, WANTED, lambda _: {"x": torch.tensor([1.5, 2.5])})
    (path,) = tmp_path.glob("*.safetensors")
    damage(path)
    again = remembered(tmp_path, WANTED, lambda _: {"x": torch.tensor([1.5, 2.5])})
    assert torch.equal(again["x"], first["x"])
    assert torch.equal(remembered(tmp_path, WANTED, never)["x"], first["x"])


def test_a_computation_that_fails_is_not_remembered(tmp_path):
    def fail(_steps):
        raise NumericalError("the loss is nan")

    with pytest.raises(NumericalError):
        remembered(tmp_path, WANTED, fail)
    assert not list(tmp_path.iterdir())


def slowly(steps):
    """Leaves a mark for each time that it is begun."""
    steps.save(f"begun-{time.monotonic_ns()}", {"x": torch.zeros(1)})
    time.sleep(0.5)
    return {"times": torch.tensor([len(list(steps.folder.glob("begun-*")))])}


@pytest.mark.parametrize("optional", [False, True])
def test_steps_left_beside_a_kept_result_go(tmp_path, optional):
    # Killed after the result took its place, and before its steps were removed.
    wanted = Fingerprint(model="m", data="d", options={})
    values = {"nats": torch.arange(3.0)}
    remembered(tmp_path, wanted, lambda _steps: values, optional=optional)
    (kept,) = tmp_path.glob("*.safetensors")
    steps = steps_folder(kept)
    steps.mkdir()
    (steps / "batch-000000.safetensors").write_bytes(b"")
    remembered(tmp_path, wanted, lambda _steps: values, optional=optional)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_process_that_wants_the_same_waits_for_the_first(tmp_path):
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=remembered, args=(tmp_path, WANTED, slowly)) for _ in range(3)]
    for other in others:
        other.start()
    found = remembered(tmp_path, WANTED, slowly)
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert found["times"].item() == 1
    assert not steps_folder(tmp_path / f"{WANTED.digest()}.safetensors").exists()


def test_likelihoods_are_kept_by_weights_texts_and_precision(tmp_path):
    tokenizer = tiny_tokenizer()

    def measure(model, **options):
        options = {"context_length": 32, "cache": Cache.of(model, tmp_path)} | options
        return perplexity(model, tokenizer, TEXT, **options)

    model = tiny_model()
    first = measure(model)
    assert measure(model) == first
    assert len(list(tmp_path.iterdir())) == 1
    assert measure(model, cache=Cache()) == first, "the same with and without"
    measure(model, context_length=16)
    measure(tiny_model(dtype=torch.float64))
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    assert measure(model).value != first.value
    assert len(list(tmp_path.iterdir())) == 4


def test_an_evaluation_that_was_cut_short_runs_no_batch_again(tmp_path, monkeypatch):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    options = {"context_length": 16, "batch_tokens": 32}
    reference = perplexity(model, tokenizer, TEXT, **options)
    forward, calls = model.forward, []

    def stop_at_the_fourth(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", stop_at_the_fourth)
    cache = Cache.of(model, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        perplexity(model, tokenizer, TEXT, **options, cache=cache)
    calls.clear()
    monkeypatch.setattr(model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    found = perplexity(model, tokenizer, TEXT, **options, cache=cache)
    assert found == reference
    batches = -(-found.details["chunks"] // 2)
    assert len(calls) == batches - 3
