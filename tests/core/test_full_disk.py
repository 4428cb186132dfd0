"""A disk that is full, read-only or closed: one error that names the file, and nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
import tempfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.adapters import trained_lora
from helpers.damage import Killed
from helpers.finetuning import TRAIN, into, settings
from helpers.pruned import pruned_folder
from helpers.scoring import WANTED, measure
from helpers.stages import capacity_small, marginal_small, prune_small, score_small
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import CONVERTED
from layerif.calibration.hidden import hidden_states
from layerif.compress.pruning.merging import merge_into
from layerif.core import caching
from layerif.core.checkpoint import Steps, resumable, steps_folder
from layerif.core.files import new_folder, taken, writing_to
from layerif.core.files.disk import DISK_MARGIN
from layerif.errors import DiskError, InputError
from layerif.evaluation.perplexity import perplexity
from layerif.evaluation.summed import Cache
from layerif.finetuning.finetune import finetune
from layerif.finetuning.trainer import KeepCheckpoints
from layerif.influence.store import DiskStore
from layerif.influence.subspaces.base import Matrix
from layerif.influence.subspaces.lora import FreshLora
from layerif.model.layers import find_decoder_layers

TEXT = " ".join(f"{i} squared is {i * i}." for i in range(40))
SIZE = 4 << 20


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MiB of its own, and a way to leave so many bytes of it free."""
    mount = tmp_path / "disk"
    mount.mkdir()
    asked = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.call(asked, stderr=subprocess.DEVNULL):
        pytest.skip("no disk can be mounted here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(disk, leave):
    """Leave so many bytes of the disk free."""
    free = shutil.disk_usage(disk).free
    with (disk / "filler").open("wb") as file:
        file.write(bytes(free - leave))


def free(disk):
    (disk / "filler").unlink()


NUMBERS = {"x": torch.ones(300, 300)}
WRITERS = {
    "safetensors": lambda folder: save_file(NUMBERS, folder / "a.safetensors"),
    "torch": lambda folder: torch.save(NUMBERS, folder / "a.pt"),
    "a model": lambda folder: tiny_model().save_pretrained(folder),
    "tokenizers": lambda folder: [
        tiny_tokenizer().save_pretrained(folder / str(i)) for i in range(30)
    ],
    "numpy": lambda folder: np.save(folder / "a.npy", np.ones(90_000)),
    "text": lambda folder: (folder / "a.txt").write_text("x" * 90_000),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_library_meets_a_full_disk_the_error_names_the_file(writer, disk):
    (disk / "out").mkdir()
    (disk / "out" / "config.json").write_text("{}")
    fill(disk, leave=40_000)
    with (
        pytest.raises(DiskError, match="disk/out"),
        new_folder(disk / "out", CONVERTED) as at,
    ):
        WRITERS[writer](at)
    assert sorted(path.name for path in disk.iterdir()) == ["filler", "out"]
    assert (disk / "out" / "config.json").read_text() == "{}"


def test_other_errors_are_left_alone(tmp_path):
    for error in (ValueError("no"), RuntimeError("shapes differ"), FileNotFoundError(2, "gone")):
        with pytest.raises(type(error)) as raised, writing_to(tmp_path / "file"):
            raise error
        assert raised.value is error
    other = PermissionError(13, "closed", "/somewhere/else/entirely")
    with pytest.raises(PermissionError), writing_to(tmp_path / "file"):
        raise other
    with pytest.raises(DiskError, match="permission denied"), writing_to(tmp_path / "file"):
        raise PermissionError(13, "closed", str(tmp_path / "file"))


def test_gradients_and_hidden_states_meet_a_full_disk(disk):
    matrices = [Matrix("m", 0, (100, 100))]
    store = DiskStore(disk, matrices, 20, torch.float32)
    assert taken(disk / "gradients.bin") == 0, "its length alone takes no room"
    fill(disk, leave=100_000)
    with pytest.raises(DiskError, match=r"gradients\.bin"):
        store.put(0, [torch.ones(20, 10_000)])
    free(disk)
    with hidden_states("disk", 400_000, torch.device("cpu"), disk) as states:
        states.append(torch.ones(1, 100, 100))
        fill(disk, leave=100_000)
        with pytest.raises(DiskError, match="hidden-00001"):  # and no signal that ends the process
            states.append(torch.ones(10, 100, 100))


def test_room_is_checked_beforehand_and_what_is_there_counts(disk):
    model = tiny_model()

    def work(keep, **options):
        with resumable(disk / "run", WANTED) as steps:
            return measure(model, keep=keep, steps=steps, rank=16, alpha=32.0, **options)

    fill(disk, leave=200_000)
    with pytest.raises(InputError, match="disk"):
        work("disk")
    assert sorted(path.name for path in disk.iterdir()) == ["filler"]
    work("auto")  # which finds another way
    free(disk)
    stopped = Steps.save

    def dying(self, step, tensors):
        stopped(self, step, tensors)
        if step == "training-00001":
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "save", dying)
        with pytest.raises(Killed):
            work("disk", batch_tokens=500)
    written = taken(steps_folder(disk / "run") / "gradients.bin")
    assert written > 0
    # Room for what is still to come, but not for all.
    fill(disk, leave=int(1.3 * (gradients_of(model) - written)) + 200_000)
    resumed = work("disk", batch_tokens=500)
    reference = measure(model, rank=16, alpha=32.0, batch_tokens=500)
    assert np.array_equal(resumed.influence, reference.influence)


def gradients_of(model, samples=9):
    matrices = FreshLora(16, 32.0, 0).matrices(find_decoder_layers(model).projections)
    return 4 * samples * sum(matrix.size for matrix in matrices)


COMMANDS = {
    "score": lambda out: score_small(out, keep="memory"),
    "prune": prune_small,
    "finetune": lambda out: into(out, plan=None, max_steps=1),
    "marginal": marginal_small,
    "capacity": capacity_small,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_full_disk_says_so_and_goes_on_when_there_is_room(command, disk):
    fill(disk, leave=4096)
    with pytest.raises(InputError, match=r"written|disk"):
        COMMANDS[command](disk / "out")
    free(disk)
    COMMANDS[command](disk / "out")
    assert [path.name for path in disk.iterdir()] == ["out"]


@pytest.mark.parametrize("best", [True, False])
def test_fine_tuning_asks_beforehand_for_all_checkpoints_that_are_there_at_once(
    best, disk, tmp_path, monkeypatch
):
    how = {"plan": None, "rank": 16, "learning_rate": 0.6, "evaluate_every": 1}
    # With patience the best stays beside the last while the next is written.
    how |= {"epochs": 3.0, "patience": 2} if best else {"max_steps": 3, "checkpoint_every": 1}
    there, saved = [], KeepCheckpoints.on_save

    def watched(self, *args, **options):
        there.append(taken(self._folder))
        saved(self, *args, **options)
        if len(there) == stop:
            raise Killed

    monkeypatch.setattr(KeepCheckpoints, "on_save", watched)
    stop = None
    adapter = 8 * into(tmp_path / "out", **how).trainable_parameters  # in float64
    size = (1 + 3 * (3 if best else 2)) * adapter
    own_files = 100_000  # of a checkpoint, beside its tensors
    assert size <= max(there) + adapter <= size + (3 if best else 2) * own_files

    fill(disk, leave=int(DISK_MARGIN * size) - 10_000)
    there.clear()
    with pytest.raises(InputError, match="checkpoints"):
        into(disk / "out", **how)
    assert there == []
    free(disk)
    fill(disk, leave=int(DISK_MARGIN * size) + 150_000)
    stop = 2
    with pytest.raises(Killed):
        into(disk / "out", **how)
    # Those that are there already count.
    kept = sum(map(taken, steps_folder(disk / "out").glob("checkpoint*")))
    assert kept > adapter
    free(disk)
    fill(disk, leave=int(DISK_MARGIN * (size - kept)) + 150_000)
    stop = None
    into(disk / "out", **how)


def test_fine_tuning_in_memory_asks_for_room_where_temporary_files_go(disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    fill(disk, leave=50_000)
    with pytest.raises(InputError, match="TMPDIR"):
        finetune(tiny_model(), tiny_tokenizer(), TRAIN, options=settings(max_steps=1))
    assert [path.name for path in disk.iterdir()] == ["filler"]
    free(disk)
    finetune(tiny_model(), tiny_tokenizer(), TRAIN, options=settings(max_steps=1))


def test_merging_says_beforehand_what_has_no_room(disk, tmp_path):
    folder = pruned_folder(tmp_path / "pruned")
    trained_lora(folder, tmp_path / "lora", ["q_proj"])
    fill(disk, leave=50_000)
    with pytest.raises(InputError, match="merged model"):
        merge_into(disk / "out", folder, tmp_path / "lora")
    assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.fixture
def text_model(monkeypatch):
    """A model, its perplexity without a cache, and the notes."""
    caching._note_unkept.cache_clear()
    model = tiny_model()
    return model, lambda **more: perplexity(
        model, tiny_tokenizer(), TEXT, context_length=32, batch_tokens=64, **more
    )


@pytest.mark.parametrize("trouble", ["full", "read-only", "under a file"])
def test_a_cache_that_cannot_be_written_stops_no_evaluation(trouble, disk, text_model, capsys):
    model, measured = text_model
    cache = disk / "cache"
    if trouble == "full":
        fill(disk, leave=0)
    elif trouble == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    else:
        cache = disk / "file" / "cache"
        (disk / "file").write_text("")
    expected = measured()
    capsys.readouterr()
    for _ in range(2):
        assert measured(cache=Cache.of(model, cache)) == expected
    said = capsys.readouterr().err
    assert said.count("nothing can be kept in") == 1
    assert not list(disk.glob("**/*.safetensors"))


def test_the_tries_of_a_comparison_are_no_cache(disk):
    fill(disk, leave=0)
    with pytest.raises(DiskError):
        caching.remembered(disk / "tries", WANTED, lambda _: {"nats": torch.ones(3)})
