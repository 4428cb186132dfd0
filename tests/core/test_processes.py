"""Several processes give what one gives, and none of them hangs when another dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from helpers.processes import ended, free_port, members_of
from helpers.scoring import measure
from helpers.tiny import tiny_model
from layerif.artifacts import LayerScores
from layerif.core.checkpoint import steps_folder
from layerif.errors import InputError

# Runs `measure` in one of several processes, and saves what the process has in the end.
MEMBER = """
import os, signal, sys
from pathlib import Path
from layerif.core.checkpoint import resumable
from layerif.influence import keeping
from helpers.scoring import WANTED, measure
from helpers.tiny import tiny_model
import torch

torch.set_num_threads(1)
keeping.INTERVAL = keeping.WORK_TO_WRITING = 0
folder, keep, estimator, subspace, tokens, dtype, dies = sys.argv[1:]
rank = os.environ.get("RANK", "0")
model = tiny_model(dtype=getattr(torch, dtype))
if rank == dies:
    forward, calls = model.forward, []
    def die(*args, **kwargs):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(*args, **kwargs)
    model.forward = die
options = {"keep": keep, "estimator": estimator, "subspace": subspace, "batch_tokens": int(tokens)}
with resumable(Path(folder) / "run", WANTED, together=True) as steps:
    measure(model, steps=steps, **options).save(Path(folder) / f"scores-{rank}")
"""


def start(folder, count, *arguments):
    """The processes that measure, each with these arguments."""
    return members_of(count, MEMBER, folder, *arguments)


def together(folder, count, keep, estimator, subspace, tokens, dtype="float64"):
    """What `count` processes find; each has all of it."""
    members = start(folder, count, keep, estimator, subspace, tokens, dtype, "none")
    for member, said in zip(members, ended(members), strict=True):
        assert member.returncode == 0, said
    assert not steps_folder(folder / "run").exists()
    found = [LayerScores.load(folder / f"scores-{rank}") for rank in range(count)]
    for other in found[1:]:
        assert np.array_equal(other.influence, found[0].influence)
        assert other.record.validation_loss == found[0].record.validation_loss
    return found[0]


def alone(keep, estimator, subspace, tokens, dtype="float64"):
    model = tiny_model(dtype=getattr(torch, dtype))
    options = {"estimator": estimator, "subspace": subspace, "batch_tokens": tokens}
    return measure(model, keep="passes" if keep == "passes" else "memory", **options)


# Batches that come to uneven shares; or one batch, and a process without any.
SPLITS = [(2, 80), pytest.param(2, 5000, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("count", "tokens"), SPLITS)
def test_kept_on_disk_they_are_the_same_to_the_bit(count, tokens, tmp_path):
    found = together(tmp_path, count, "disk", "datainf", "fresh_lora", tokens)
    expected = alone("disk", "datainf", "fresh_lora", tokens)
    assert np.array_equal(found.projection_influence, expected.projection_influence)
    assert np.array_equal(found.train_losses, expected.train_losses)
    assert found.record.validation_loss == expected.record.validation_loss


# How many threads of gloo a process has, before its group is ended and after.
THREADS = """
import sys
from pathlib import Path
import torch
from torch.nn.parallel import DistributedDataParallel
from layerif.core import processes

def running():
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return names.count("pt_gloo_runloop\\n")

processes.barrier()
DistributedDataParallel(torch.nn.Linear(2, 2))
ours, _ = running(), processes._end()
print(ours, running(), file=sys.stderr)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the threads from /proc")
def test_no_thread_of_the_group_outlives_it():
    """One that does may abort the process as Python ends, if it still has tensors to free."""
    members = members_of(2, THREADS)
    default = 2  # threads of the default group, which torch itself keeps
    for member, said in zip(members, ended(members), strict=True):
        assert member.returncode == 0, said
        # Beside it, torch itself may tell of connections that the other has closed.
        assert f"{2 * default} {default}" in said.splitlines()


@pytest.mark.slow
def test_so_they_are_for_other_estimators(tmp_path):
    found = together(tmp_path, 2, "disk", "exact", "fresh_lora", 80)
    expected = alone("disk", "exact", "fresh_lora", 80)
    assert np.array_equal(found.projection_influence, expected.projection_influence)
    assert found.record.blocks == expected.record.blocks


@pytest.mark.parametrize(
    ("count", "keep", "estimator", "subspace", "tokens", "dtype", "tolerance"),
    [
        (2, "passes", "datainf", "fresh_lora", 80, "float64", 1e-10),
        pytest.param(
            2, "passes", "datainf", "full", 5000, "float64", 1e-10, marks=pytest.mark.slow
        ),
        pytest.param(
            3, "passes", "ekfac", "fresh_lora", 200, "float64", 1e-10, marks=pytest.mark.slow
        ),
        # Its factors are added up over processes.
        pytest.param(
            2, "disk", "ekfac", "fresh_lora", 80, "float64", 1e-10, marks=pytest.mark.slow
        ),
        pytest.param(
            2, "passes", "cosine", "two_sided", 80, "float32", 1e-4, marks=pytest.mark.slow
        ),
    ],
)
def test_what_is_added_up_is_the_same_but_for_rounding(
    count, keep, estimator, subspace, tokens, dtype, tolerance, tmp_path
):
    found = together(tmp_path, count, keep, estimator, subspace, tokens, dtype)
    expected = alone(keep, estimator, subspace, tokens, dtype)
    for name in ("projection_influence", "influence", "train_losses"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "dies"), [("disk", 0), ("disk", 1), ("passes", 0), ("passes", 1)])
def test_when_one_dies_the_other_ends_and_one_process_goes_on(keep, dies, tmp_path):
    began = time.monotonic()
    members = start(tmp_path, 2, keep, "datainf", "fresh_lora", 80, "float64", dies)
    said = ended(members)
    assert time.monotonic() - began < 120, "long before the group's own timeout"
    assert members[dies].returncode == -signal.SIGKILL
    assert members[1 - dies].returncode == 1
    assert "lost the others" in said[1 - dies]
    assert steps_folder(tmp_path / "run").exists()
    found = together(tmp_path, 1, keep, "datainf", "fresh_lora", 80)
    expected = alone(keep, "datainf", "fresh_lora", 80)
    scale = np.abs(expected.projection_influence).max()
    error = np.abs(found.projection_influence - expected.projection_influence).max()
    assert error <= (0 if keep == "disk" else 1e-10 * scale)


def launch(*arguments, processes=2):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command = [*launcher, "--master-port", free_port(), "-m", "layerif", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_the_command_under_torchrun(model, layerif, tmp_path):
    asked = ["score", "--model", model, "--task", "agreement", "--train-samples", "9"]
    asked += ["--validation-samples", "4", "--batch-tokens", "600"]
    done = launch(*asked, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    assert done.stderr.count("forward and backward") == 1
    assert layerif(*asked, "--out", tmp_path / "one")[0] == 0
    two, one = (LayerScores.load(tmp_path / name) for name in ("two", "one"))
    assert np.array_equal(two.influence, one.influence)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(
        p.name for p in (tmp_path / "one").iterdir()
    )
    assert "already holds this result" in launch(*asked, "--out", tmp_path / "two").stderr
    other = launch(*asked[:-1], "500", "--out", tmp_path / "two")
    assert other.returncode != 0
    assert "already holds another result" in other.stderr


def test_other_commands_are_refused(monkeypatch, layerif):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, said = layerif("tasks")
    assert status == 2
    assert "one process, and 2" in said


def test_what_several_processes_cannot_do_is_said(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="RANK"):
        measure(tiny_model())
