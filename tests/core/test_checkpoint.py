"""Work that is killed goes on where it was, to the very same result."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from helpers.scoring import TRAIN, VALIDATION
from helpers.stages import contents, cut_short, evaluate_small, prune_small, score_small, steps_of
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import SCORES, Fingerprint, Results, hash_model, hash_texts
from layerif.core.checkpoint import (
    LOCK_FILE,
    alone,
    check_out,
    remove_leftover,
    resumable,
    steps_folder,
)
from layerif.errors import DiskError, InputError, NumericalError

KILLS = 4


def run_and_kill(work, out, finished_steps, delay):
    """Start the work in a process of its own and kill it some time after so many finished steps.

    Waiting for steps, and not for a share of the time, so that it is killed at work however busy
    the machine is. Returns whether it was.
    """
    process = multiprocessing.get_context("fork").Process(target=work, args=(out,))
    process.start()
    while process.is_alive():
        if sum(len(list(s.glob("*.safetensors"))) for s in steps_of(out)) >= finished_steps:
            time.sleep(delay)
            break
        time.sleep(0.001)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("work", "steps"),
    [(score_small, 13), (prune_small, 3), (evaluate_small, 24)],
    ids=["score", "prune", "evaluate"],
)
def test_killed_at_random_moments_the_result_is_the_same(work, steps, tmp_path):
    reference = tmp_path / "reference"
    work(reference)
    draw = random.Random(0)
    interrupted = 0
    for kill in range(KILLS):
        out = tmp_path / f"run{kill}"
        for _ in range(draw.randint(1, 3)):
            interrupted += run_and_kill(work, out, draw.randrange(steps), draw.uniform(0, 0.05))
        work(out)
        assert contents(out) == contents(reference)
        remove_leftover(out)
    assert interrupted >= KILLS // 2
    names = ["reference", *(f"run{kill}" for kill in range(KILLS))]
    left = {p.name.removesuffix(".cache") for p in (*tmp_path.iterdir(), *tmp_path.glob("*/.*"))}
    assert left == set(names), "nothing half-written is left"


def fingerprint(model, data, options):
    return Fingerprint(model=model, data=data, options=options)


def test_finished_steps_are_there_until_the_work_is_done(tmp_path):
    out = tmp_path / "run"
    wanted = fingerprint("m", "d", {"rank": 2})
    with pytest.raises(KeyboardInterrupt):
        cut_short(out, wanted)
    with resumable(out, wanted) as steps:
        assert steps.load("one")["x"].tolist() == [1.5, 2.5]
        assert steps.load("two") is None
    assert not steps_folder(out).exists(), "done: the steps are gone"


def test_steps_of_other_work_are_refused_and_the_difference_is_named(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        cut_short(out, fingerprint("m", "d", {"rank": 2}))
    for other, message in (
        (fingerprint("n", "d", {"rank": 2}), "model"),
        (fingerprint("m", "e", {"rank": 2}), "data"),
        (fingerprint("m", "d", {"rank": 4}), "rank"),
    ):
        with pytest.raises(InputError, match=message), resumable(out, other):
            pass
    with resumable(out, fingerprint("m", "d", {"rank": 2})) as steps:
        assert steps.load("one") is not None, "refusing has not spoilt them"
    with pytest.raises(KeyboardInterrupt):
        cut_short(out, fingerprint("m", "d", {"rank": 2}))
    with resumable(out, fingerprint("n", "d", {}), restart=True) as steps:
        assert steps.load("one") is None


@pytest.mark.parametrize("error", [None, NumericalError("the loss is nan")])
def test_steps_that_were_going_are_not_gone_on_with(error, tmp_path, monkeypatch):
    """A step may speak of a folder beside it, which a kill amid removing them took away."""
    out, wanted = tmp_path / "run", fingerprint("m", "d", {"rank": 2})
    with pytest.raises(KeyboardInterrupt):
        cut_short(out, wanted)
    (steps_folder(out) / "checkpoint-2").mkdir()

    def killed(*_args):
        raise KeyboardInterrupt

    def removing():
        if error is not None:
            with resumable(out, wanted):
                raise error
        monkeypatch.setattr(Path, "iterdir", lambda folder: [folder / "checkpoint-2"])
        with resumable(out, fingerprint("n", "d", {}), restart=True):
            pass

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        removing()
    monkeypatch.undo()
    assert (steps_folder(out) / "one.safetensors").is_file()
    with resumable(out, wanted) as steps:
        assert steps.load("one") is None


def test_parameters_out_of_range_leave_nothing(tmp_path):
    with pytest.raises(InputError, match="damping=nan"):
        score_small(tmp_path / "run", damping=float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(tmp_path):
    out = tmp_path / "run"
    steps_folder(out).mkdir()
    with (
        FileLock(steps_folder(out) / LOCK_FILE),
        pytest.raises(InputError, match="another process"),
        resumable(out, fingerprint("m", "d", {})),
    ):
        pass


def test_one_that_waits_may_take_the_lock_while_the_folder_goes(tmp_path, monkeypatch):
    out, wanted = tmp_path / "run", fingerprint("m", "d", {"rank": 2})
    unlink, left = Path.unlink, []

    def taken_at_once(path, missing_ok=False):
        if path.name == LOCK_FILE:
            left.extend(sorted(other.name for other in path.parent.iterdir()))
        unlink(path, missing_ok=missing_ok)
        if path.name == LOCK_FILE:
            path.touch()

    with resumable(out, wanted) as steps:
        steps.save("one", {"x": torch.ones(1)})
        (steps_folder(out) / "checkpoint-2").mkdir()
        monkeypatch.setattr(Path, "unlink", taken_at_once)
    monkeypatch.undo()
    assert left == [LOCK_FILE], "nothing of the first run is removed after its lock"
    assert [path.name for path in steps_folder(out).iterdir()] == [LOCK_FILE], "the other's stands"
    with resumable(out, wanted) as steps:
        assert steps.load("one") is None
    assert not steps_folder(out).exists()


def test_a_fault_of_the_work_itself_leaves_no_steps(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(NumericalError):
        cut_short(out, fingerprint("m", "d", {}), NumericalError("the loss is nan"))
    assert not steps_folder(out).exists()


def test_steps_that_do_not_fit_on_the_disk_are_refused_beforehand(tmp_path):
    with (
        pytest.raises(InputError, match="GB"),
        resumable(tmp_path / "run", fingerprint("m", "d", {})) as steps,
    ):
        steps.reserve(10**18, "the steps of this run")


def test_fingerprints_see_every_weight_and_every_text():
    model = tiny_model()
    before = hash_model(model)
    assert hash_model(tiny_model()) == before
    model.model.layers[2].mlp.down_proj.weight.data[3, 4] += 1e-6
    assert hash_model(model) != before
    assert hash_model(tiny_model(dtype=torch.bfloat16)) != before
    assert hash_texts(["a", "b"]) != hash_texts(["b", "a"])
    assert hash_texts(["ab"]) != hash_texts(["a", "b"])


def test_scores_with_and_without_steps_are_the_same_to_the_bit(tmp_path):
    from layerif.influence.scoring import score

    kept = score_small(tmp_path / "run")
    plain = score(
        tiny_model(), tiny_tokenizer(), TRAIN, VALIDATION, rank=2, alpha=4.0, batch_tokens=1
    )
    np.testing.assert_array_equal(kept.influence, plain.influence)


def test_what_a_killed_process_left_beside_a_finished_result_goes(tmp_path):
    """By the check of a command, and by a stage that finds its result: a recipe's has no other."""
    out = tmp_path / "result.json"

    def leave():
        steps_folder(out).mkdir()
        (steps_folder(out) / "one.safetensors").write_text("stale")
        (tmp_path / ".result.json.abcdefgh.part").mkdir()  # of a process that died there

    results = evaluate_small(out)
    shutil.rmtree(tmp_path / "result.json.cache")
    leave()
    check_out(out, Results.file_kind(), overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    leave()
    assert evaluate_small(out) == results
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_killed_while_the_result_is_written_it_can_be_finished(tmp_path):
    """The matrix is written, scores.json is not: that folder is no finished result."""
    out = tmp_path / "run"
    reference = score_small(out)
    (out / "scores.json").unlink()
    steps_folder(out).mkdir()
    check_out(out, SCORES, overwrite=False)
    assert (score_small(out).influence == reference.influence).all()
    (out / "scores.json").unlink()
    with pytest.raises(InputError, match="already holds"):
        check_out(out, SCORES, overwrite=False)


def test_a_lock_where_no_folder_can_be_is_refused():
    """Would see: waiting for ever, as if another process had taken the folder away."""
    with pytest.raises(DiskError), alone(Path("/proc/none/lock"), Path("/proc/none")):
        pass
