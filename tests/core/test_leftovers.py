"""What a killed process leaves beside a result goes, or comes back, with the next writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from helpers.folders import FOLDER, fill, names
from layerif.core.checkpoint import alone
from layerif.core.files import Kind, new_folder, sweep, write_text

PRELUDE = """
import os, sys, time
from pathlib import Path
from layerif.core.files import Kind, new_file, new_folder
FOLDER = Kind("", "weights", ("*",))
def wait_to_be_killed(*_):
    print("inside", flush=True)
    time.sleep(60)
"""


@contextmanager
def killed_inside(code: str) -> Iterator[None]:
    """Run `code` in a process of its own and kill it where it calls wait_to_be_killed()."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            assert process.stdout.readline() == "inside\n"
            yield
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("old", [True, False])
def test_a_file_half_written(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "a.json"
    if old:
        path.write_text("old")
    code = f"with new_file(Path({str(path)!r})) as part:\n"
    # safetensors writes to a file of its own first, which a kill leaves behind.
    code += "    part.with_name('.tmp0').write_text('ne')\n"
    code += "    part.write_text('ne')\n    wait_to_be_killed()\n"
    with killed_inside(code):
        # It really is halfway: something was written beside, under a name of its own.
        assert [p.read_text() for p in tmp_path.glob(".a.json.*.part/new/*")] == ["ne", "ne"]
        before = names(tmp_path)
        sweep(path)
        assert names(tmp_path) == before, "what a living process is at stays"
    assert (path.read_text() == "old") if old else not path.exists()
    write_text(path, "next")
    assert path.read_text() == "next"
    assert names(tmp_path) == ["a.json"], "what was left behind is gone"


def test_a_folder_half_written(tmp_path: Path) -> None:
    path = tmp_path / "model"
    fill(path, weights="old")
    code = f"with new_folder(Path({str(path)!r}), FOLDER) as part:\n"
    code += "    (part / 'weights').write_text('ne')\n    wait_to_be_killed()\n"
    with killed_inside(code):
        assert [p.read_text() for p in tmp_path.glob(".model.*.part/new/weights")] == ["ne"]
    assert names(path) == ["weights"]
    assert (path / "weights").read_text() == "old"
    with new_folder(path, FOLDER) as part:
        fill(part, weights="next")
    assert (path / "weights").read_text() == "next"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("renamed", [0, 1])
def test_killed_between_the_two_renames(tmp_path: Path, renamed: int) -> None:
    """Would see: the old result hidden for ever, on a machine of another name too."""
    path = tmp_path / "model"
    fill(path, weights="old")
    # The old one is moved aside first; the process dies at the second rename, or just after it.
    code = f"""
rename, done = Path.rename, []
def until_killed(part, to):
    if len(done) == 1 and {renamed} == 0:
        wait_to_be_killed()
    rename(part, to)
    done.append(to)
    if len(done) == 2:
        wait_to_be_killed()
Path.rename = until_killed
with new_folder(Path({str(path)!r}), FOLDER) as part:
    (part / "weights").write_text("new")
"""
    with killed_inside(code):
        assert path.exists() == bool(renamed)
    sweep(path)
    assert (path / "weights").read_text() == ("new" if renamed else "old")
    assert names(tmp_path) == ["model"]


def test_results_whose_names_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """Would see: `a` made of what was moved aside for `a.b`."""
    code = f"with new_folder(Path({str(tmp_path / 'a.b')!r}), FOLDER) as part:\n"
    code += "    os.rename(part, part.with_name('old')); wait_to_be_killed()\n"
    with killed_inside(code):
        pass
    sweep(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    sweep(tmp_path / "a.b")
    assert names(tmp_path) == ["a.b"]


def test_files_that_come_to_the_old_folder_at_the_last_moment_are_carried_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kind = tmp_path / "model", Kind("", "weights", ("w*",))
    fill(path, weights="old")
    rename = Path.rename

    def after_a_note(part: Path, to: Path) -> Path:
        if part == path:
            fill(path, **{"notes.txt": "mine"})
        return rename(part, to)

    monkeypatch.setattr(Path, "rename", after_a_note)
    with new_folder(path, kind) as part:
        fill(part, weights="new")
    monkeypatch.undo()
    assert (path / "notes.txt").read_text() == "mine"
    assert (path / "weights").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_many_at_once_write_whole_files(tmp_path: Path) -> None:
    """Each has a folder of its own, and sweeps none that another is at."""
    path = tmp_path / "a.txt"
    code = f"""
from layerif.core.files import write_text
for _ in range(40):
    write_text(Path({str(path)!r}), sys.argv[1] * 1000)
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", PRELUDE + code, word]) for word in ("a", "b", "c")
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    text = path.read_text()
    assert text in {word * 1000 for word in "abc"}
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [FileExistsError, FileNotFoundError])
def test_a_folder_swept_while_it_is_locked_is_made_again(error, tmp_path: Path) -> None:
    """Python's mkdir says that a folder exists where it goes between two of its questions."""
    acquire, left = FileLock.acquire, [error("swept")]

    def swept(lock: FileLock, *arguments: Any, **options: Any) -> Any:
        if left:
            os.rmdir(Path(lock.lock_file).parent)
            raise left.pop()
        return acquire(lock, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileLock, "acquire", swept)
        write_text(tmp_path / "a.txt", "whole")
        left.append(error("swept"))
        with alone(tmp_path / "steps" / "lock", tmp_path / "out"):
            pass
    assert not left
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert names(tmp_path) == ["a.txt", "steps"]
