"""Files and folders that are either complete or absent: write aside, then rename."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layerif.core.files.disk import writing_to
from layerif.core.files.leftovers import OLD, beside
from layerif.core.files.targets import Kind, check_ordinary, check_target, target


def cache_folder() -> Path:
    """Where what can be made again is kept: $LAYERIF_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("LAYERIF_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerif"


@contextmanager
def new_file(path: Path, kind: Kind | None = None) -> Iterator[Path]:
    """Yield a path to write to; what is there takes the place of `path` only on success.

    It lies in a folder of its own beside `path`, where a writer may make files that it renames
    itself. Before it takes its place it is on the disk, and not in the system's memory alone.

    Args:
        kind: what is written; what is at `path` is replaced only where it is of this kind too. None
            for files of a folder that nobody else writes to.

    Raises:
        InputError: as `check_target`.
        DiskError: the disk refuses.
    """
    _check(path, kind)
    place = target(path)
    with writing_to(place), beside(place) as folder:
        part = folder / "new" / place.name
        part.parent.mkdir()
        yield part
        _make_readable(part, place.parent)
        sync(part)
        _check(path, kind)
        part.replace(place)
        sync(place.parent)


@contextmanager
def new_folder(path: Path, kind: Kind) -> Iterator[Path]:
    """Yield an empty folder; it takes the place of `path` only on success.

    Args:
        kind: what is written; a folder at `path` is replaced only where all in it is of this kind.

    Raises:
        InputError: as `check_target`.
        DiskError: the disk refuses.
    """
    check_target(path, kind)
    place = target(path)
    with writing_to(place), beside(place) as folder:
        part, old = folder / "new", folder / OLD
        part.mkdir()
        yield part
        for below, _, names in os.walk(part, topdown=False):
            for name in names:
                _make_readable(Path(below, name), Path(below))
                sync(Path(below, name))
            sync(Path(below))
        check_target(path, kind)
        # A folder cannot be renamed over a full one. Killed between the two, the next process that
        # writes here brings the old one back.
        if place.exists():
            place.rename(old)
        part.rename(place)
        sync(place.parent)
        _carry_over(old, place, kind)


def _check(path: Path, kind: Kind | None) -> None:
    if kind is None:
        check_ordinary(path, folder=False)
    else:
        check_target(path, kind)


def _carry_over(old: Path, place: Path, kind: Kind) -> None:
    """Bring files along that came to the old folder after it was looked at."""
    if old.is_dir():
        for entry in old.iterdir():
            if not kind.owns(entry) and not (place / entry.name).exists():
                entry.rename(place / entry.name)


def _make_readable(path: Path, folder: Path) -> None:
    """Let others read a file where the folder lets them: some writers make it private."""
    if path.is_file():
        path.chmod(path.stat().st_mode | (folder.stat().st_mode & 0o044))


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk: a power cut loses neither."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a disk that has nothing of the kind
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str, kind: Kind | None = None) -> None:
    """Write a text file, whole or not at all; `kind` as for `new_file`."""
    with new_file(path, kind) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, kind: Kind | None = None) -> None:
    """Write JSON for people: indented, with each list of plain values on one line; NaN refused."""
    write_text(path, json_text(value) + "\n", kind)


def json_text(value: Any, indent: int = 0) -> str:
    """`value` as readable JSON text.

    Raises:
        ValueError: a number in it is not finite.
    """
    pad, inner = "  " * indent, "  " * (indent + 1)
    if isinstance(value, dict) and value:
        rows = (
            f"{inner}{json.dumps(str(k))}: {json_text(v, indent + 1)}" for k, v in value.items()
        )
        return "{\n" + ",\n".join(rows) + f"\n{pad}}}"
    if isinstance(value, list | tuple) and any(isinstance(v, dict | list | tuple) for v in value):
        rows = (inner + json_text(v, indent + 1) for v in value)
        return "[\n" + ",\n".join(rows) + f"\n{pad}]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
