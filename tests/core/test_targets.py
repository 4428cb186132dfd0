"""What may be written, and what may be replaced: nothing that layerif did not write."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from helpers.artifact_samples import make_manifest, make_plan, make_results, make_scores
from helpers.folders import FOLDER, fill, names
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import PRUNED, SCORES, Plan
from layerif.compress.pruning.saving import save_pruned
from layerif.core.checkpoint import check_out, steps_folder
from layerif.core.files import check_target, new_file, new_folder, target, write_text
from layerif.errors import InputError
from layerif.report.plots import plot_plan, plot_scores
from layerif.workflows.folder import RunFolder

Save = Callable[[Path], object]

# Every public way of Python to a file.
FILES: dict[str, Save] = {
    "plan": lambda path: make_plan().save(path),
    "results": lambda path: make_results().save(path),
    "picture": lambda path: plot_plan(make_plan(), path.with_suffix("")),
    "scores": lambda path: make_scores().save(path.parent),
}
NAMES = {"plan": "plan.json", "results": "r.json", "picture": "p.png", "scores": "scores.json"}


def save_model(folder: Path) -> None:
    save_pruned(tiny_model(), tiny_tokenizer(), make_manifest(), folder)


def make_special(path: Path, what: str) -> None:
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        try:
            os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("devices are made by root alone")


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("what", ["pipe", "socket", "device"])
class TestSpecialFiles:
    """Would see: a device of the machine replaced by a folder of weights."""

    def path(self, folder: Path, what: str, linked: bool, name: str = "special") -> Path:
        path = folder / name
        if linked:
            path.symlink_to(folder / "node")
        make_special(folder / "node" if linked else path, what)
        return path

    def test_by_whatever_means(self, tmp_path: Path, what: str, linked: bool) -> None:
        path = self.path(tmp_path, what, linked)
        before = (names(tmp_path), path.lstat(), path.stat())
        for write in (
            save_model,
            make_scores().save,
            lambda path: write_text(path, "text"),
            lambda path: make_plan().save(path),
            lambda path: check_out(path, Plan.file_kind(), overwrite=True),
            lambda path: check_out(path, SCORES, overwrite=True),
            lambda path: RunFolder(path).check(),
        ):
            with pytest.raises(InputError, match="special"):
                write(path)
            assert (names(tmp_path), path.lstat(), path.stat()) == before


@pytest.mark.parametrize("what", FILES)
def test_a_file_of_a_person_is_not_replaced(what: str, tmp_path: Path) -> None:
    path = tmp_path / NAMES[what]
    path.write_text('{"about": "my notes"}')
    with pytest.raises(InputError, match="not replaced"):
        FILES[what](path)
    assert path.read_text() == '{"about": "my notes"}'
    path.write_text("")
    FILES[what](path)
    written = path.read_bytes()
    FILES[what](path)
    assert path.read_bytes() == written, "another of its kind gives way"
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_one_kind_does_not_replace_another(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    make_plan().save(path)
    with pytest.raises(InputError, match=r"layerif\.results"):
        make_results().save(path)
    assert Plan.load(path) == make_plan()


def test_a_picture_and_a_matrix_of_others_are_told_from_ours(tmp_path: Path) -> None:
    Figure().savefig(tmp_path / "scores.svg")
    save_file({"influence": torch.zeros(1)}, tmp_path / "influence.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="not replaced"):
        plot_scores(make_scores(), tmp_path / "scores")
    with pytest.raises(InputError, match="not replaced"):
        make_scores().save(tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert "scores.json" not in names(tmp_path)


class TestFolders:
    def test_of_a_person(self, tmp_path: Path) -> None:
        """Would see: the whole folder deleted."""
        path = tmp_path / "taken"
        fill(path, **{"notes.txt": "mine", "config.json": "{}"})
        fill(path / "sub", **{"thesis.txt": "mine"})
        for overwrite in (False, True):
            with pytest.raises(InputError, match="notes") as refused:
                check_out(path, PRUNED, overwrite=overwrite)
            assert "another result" not in str(refused.value)
            with pytest.raises(InputError, match="notes"):
                check_out(path, SCORES, overwrite=overwrite)
        with pytest.raises(InputError, match="notes"):
            save_model(path)
        assert (path / "sub" / "thesis.txt").read_text() == "mine"
        assert names(tmp_path) == ["taken"]

    def test_a_note_among_the_files_of_a_model(self, tmp_path: Path) -> None:
        path = tmp_path / "model"
        save_model(path)
        save_model(path)
        for name, text in {
            "notes.txt": "mine",
            "README.md": "# My model",
            "recipe.yaml": "command: prune  # my reasons",
            "train.py": "",
        }.items():
            (path / name).write_text(text)
            with pytest.raises(InputError, match=name):
                check_out(path, PRUNED, overwrite=True)
            with pytest.raises(InputError, match=name):
                save_model(path)
            assert (path / name).read_text() == text
            (path / name).unlink()
        (path / "sub").mkdir()
        with pytest.raises(InputError, match="sub"):
            save_model(path)

    def test_a_note_that_comes_while_the_model_is_written(self, tmp_path: Path) -> None:
        path = tmp_path / "model"
        save_model(path)
        before = (path / "model.safetensors").read_bytes()
        with pytest.raises(InputError, match="notes"), new_folder(path, PRUNED):
            (path / "notes.txt").write_text("mine")
        assert (path / "notes.txt").read_text() == "mine"
        assert (path / "model.safetensors").read_bytes() == before
        assert names(tmp_path) == ["model"]

    def test_of_a_model_that_layerif_did_not_write(self, tmp_path: Path) -> None:
        tiny_model().save_pretrained(tmp_path / "base")
        with pytest.raises(InputError, match="config"):
            save_model(tmp_path / "base")
        assert (tmp_path / "base" / "model.safetensors").is_file()

    def test_notes_beside_scores_stay(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        make_scores().save(run)
        make_plan().save(run / "plan.json")
        fill(run, **{"notes.txt": "mine"})
        check_out(run, SCORES, overwrite=True)
        make_scores(np.ones((5, 12))).save(run)
        assert (run / "notes.txt").read_text() == "mine"

    def test_each_study_has_its_own(self, tmp_path: Path) -> None:
        """Would see: a run into a comparison's folder, whose results it overwrites."""
        for study, other in (
            ("run", "compare sparsity"),
            ("compare sparsity", "compare experts"),
            ("validate", "run"),
        ):
            path = tmp_path / study
            with RunFolder(path, study).claimed():
                make_scores().save(path)
            with RunFolder(path, study).claimed():
                pass
            with pytest.raises(InputError, match=study):
                RunFolder(path, other).check()
            with pytest.raises(InputError, match=study):
                check_out(path, SCORES, overwrite=True)
            assert not [name for name in names(path) if name.startswith(".")]

    def test_a_refusal_leaves_no_folder(self, tmp_path: Path) -> None:
        """Would see: a folder that holds nothing but a claim, closed to every other command."""
        path = tmp_path / "study"
        with pytest.raises(InputError), RunFolder(path).claimed("model: a\n"):
            raise InputError("too short a text")
        assert not path.exists()
        with RunFolder(path).claimed():
            make_scores().save(path)
        with pytest.raises(InputError), RunFolder(path).claimed():
            raise InputError("another text")
        assert (path / "scores.json").is_file()

    def test_of_a_study_that_an_earlier_version_wrote(self, tmp_path: Path) -> None:
        fill(tmp_path / "a", **{"written.json": '{"p.json": ["0"]}', "recipe.yaml": "model: m\n"})
        RunFolder(tmp_path / "a").check()
        fill(tmp_path / "b", **{"written.json": "{}", "recipe.yaml": "command: compare sparsity\n"})
        RunFolder(tmp_path / "b", "compare sparsity").check()
        with pytest.raises(InputError, match="compare sparsity"):
            RunFolder(tmp_path / "b").check()
        with RunFolder(tmp_path / "a").claimed():
            pass
        assert '"p.json": ["0"]' in (tmp_path / "a" / "written.json").read_text()


class TestLinks:
    def test_a_folder_is_written_through(self, tmp_path: Path) -> None:
        big, run = tmp_path / "disk" / "big", tmp_path / "run"
        run.symlink_to(big)
        for _ in range(2):
            save_model(run)
            assert run.is_symlink()
            assert (big / "layerif_manifest.json").is_file()
        assert names(tmp_path) == ["disk", "run"]
        assert names(tmp_path / "disk") == ["big"]
        assert steps_folder(run) == tmp_path / "disk" / ".big.steps", "on the disk of the result"

    def test_a_file_is_written_through(self, tmp_path: Path) -> None:
        (tmp_path / "plan.json").symlink_to(tmp_path / "real.json")
        for _ in range(2):
            make_plan().save(tmp_path / "plan.json")
        assert (tmp_path / "plan.json").is_symlink()
        assert Plan.load(tmp_path / "real.json") == make_plan()
        (tmp_path / "note.json").write_text("mine")
        (tmp_path / "other.json").symlink_to(tmp_path / "note.json")
        with pytest.raises(InputError, match="not replaced"):
            make_plan().save(tmp_path / "other.json")

    def test_a_circle(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(InputError, match="written"):
            save_model(tmp_path / "a")

    def test_a_link_inside_a_folder_is_no_file_of_ours(self, tmp_path: Path) -> None:
        save_model(tmp_path / "model")
        (tmp_path / "model" / "config.json").rename(tmp_path / "config.json")
        (tmp_path / "model" / "config.json").symlink_to(tmp_path / "config.json")
        with pytest.raises(InputError, match="config"):
            save_model(tmp_path / "model")


HOSTILE = {
    "the current folder": Path("."),
    "the one above": Path(".."),
    "the root": Path("/"),
    "no name": Path(""),
    "a pipe by convention": Path("-"),
    "by a detour": Path("sub/.."),
    "long": Path("a" * 240),
    "longer than any": Path("a" * 300),
    "not UTF-8": Path("a\udcff"),
    "control": Path("a\x1b]0;b"),
    "nul": Path("a\0b"),
    "below a file": Path("file/a"),
    "where nothing is made": Path("/proc/layerif/a"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_will_not_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    fill(here, file="mine")
    (here / "sub").mkdir()
    monkeypatch.chdir(here)
    path = HOSTILE[name]
    for kind in (Plan.file_kind(), SCORES, PRUNED):
        with pytest.raises(InputError):
            check_out(path, kind, overwrite=True)
    with pytest.raises(InputError):
        RunFolder(path).check()
    for write in (save_model, make_plan().save):
        with pytest.raises(InputError):
            write(path)
    assert (names(tmp_path), names(here)) == (["here"], ["file", "sub"])


@pytest.mark.parametrize("name", ["a" * 220, "größe → 1", " a b ", "a.b.c", "-a", "%s {x}"])
def test_names_that_will(name: str, tmp_path: Path) -> None:
    check_out(tmp_path / name, PRUNED, overwrite=False)
    for _ in range(2):
        save_model(tmp_path / name)
    make_plan().save(tmp_path / name[:200] / ".." / "p.json")
    assert sorted(names(tmp_path)) == sorted([name, "p.json"])


@contextmanager
def no_larger_files(size: int) -> Iterator[None]:
    """As if the disk were full: the system refuses to write more to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", ["results", "picture", "scores"])
def test_a_disk_that_takes_no_more_is_named(what: str, tmp_path: Path) -> None:
    """Python, matplotlib and safetensors each say so in their own way."""
    FILES[what](tmp_path / NAMES[what])
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with no_larger_files(16), pytest.raises(InputError, match="too large"):
        FILES[what](tmp_path / NAMES[what])
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_disk_that_takes_no_more_of_a_model(tmp_path: Path) -> None:
    with no_larger_files(1 << 12), pytest.raises(InputError, match="model"):
        save_model(tmp_path / "model")
    assert names(tmp_path) == []


def test_a_disk_that_is_only_read(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        for kind in (PRUNED, SCORES, Plan.file_kind()):
            with pytest.raises(InputError, match="Read-only"):
                check_out(tmp_path / "a", kind, overwrite=False)
        with pytest.raises(InputError, match="mounted"):
            check_out(tmp_path, PRUNED, overwrite=True)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_errors_of_the_work_itself_stay_as_they_are(tmp_path: Path) -> None:
    for error in (ValueError("mine"), FileNotFoundError(2, "gone", "other.txt"), InputError("no")):
        with pytest.raises(type(error)) as raised, new_file(tmp_path / "a"):
            raise error
        assert raised.value is error


def test_the_target_of_a_check_is_as_before(tmp_path: Path) -> None:
    fill(tmp_path / "model", weights="1")
    before = (tmp_path / "model").stat().st_ctime_ns
    check_target(tmp_path / "model", FOLDER)
    assert (tmp_path / "model").stat().st_ctime_ns == before
    assert target(tmp_path / "model") == tmp_path / "model"


def test_what_a_killed_process_left_inside_a_result_is_no_persons(tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    save_pruned(tiny_model(), tiny_tokenizer(), make_manifest(), folder)
    (folder / ".recipe.yaml.abcd1234.part").mkdir()
    check_target(folder, PRUNED)
    (folder / ".thesis.txt.abcd1234.part").mkdir()
    with pytest.raises(InputError, match="thesis"):
        check_target(folder, PRUNED)
