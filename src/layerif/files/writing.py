"""Files and folders that are either complete or absent: write aside, then rename."""

from __future__ import annotations

import glob
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layerif.errors import InputError
from layerif.files.failures import writing_to

# In the names of unfinished files: on a shared disk, other machines have processes of their own.
_HOST = platform.node() or "localhost"


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Stop before any work when `path` already holds something that would be lost.

    Raises:
        InputError: `path` is a file or a folder with something in it, and `overwrite` is false;
            or nothing can be written there.
    """
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(
            f"{path} cannot be written: {above} is "
            + ("a folder that is closed to you" if above.is_dir() else "a file")
        )
    holds = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if holds and not overwrite:
        raise InputError(
            f"{path} already holds another result; choose another --out, "
            f"or pass --overwrite to replace it"
        )


def cache_folder() -> Path:
    """Where what can be made again is kept: $LAYERIF_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("LAYERIF_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerif"


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what is there takes the place of `path` only on success.

    It lies in a folder of its own beside `path`, where a writer may make files that it renames
    itself: should it be killed, the next one sweeps all of them away.

    Raises:
        InputError: `path` is a folder.
        DiskError: the disk refuses.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; a file is to be written, so name one inside it")
    folder = _part(path)
    part = folder / path.name
    with writing_to(path), _removed_in_the_end(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        folder.mkdir(exist_ok=True)
        yield part
        _make_readable(part, path.parent)
        part.replace(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it takes the place of `path` only on success.

    Raises:
        DiskError: the disk refuses.
    """
    part = _part(path)
    with writing_to(path), _removed_in_the_end(part):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        part.mkdir()
        yield part
        for file in part.rglob("*"):
            _make_readable(file, file.parent)
        if path.exists():
            # A folder cannot be renamed over a full one: move the old aside, so that at every
            # moment either the old or the new is whole on disk.
            old = part.with_suffix(".old")
            path.rename(old)
            try:
                part.rename(path)
            except BaseException:
                old.rename(path)
                raise
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink()
        else:
            part.rename(path)


@contextmanager
def _removed_in_the_end(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.part")


def _sweep(path: Path) -> None:
    """Remove what killed processes of this machine left beside `path` half-written."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(_HOST)}.*.part"):
        process = part.name.removesuffix(".part").rpartition(".")[2]
        if process.isdecimal() and int(process) != os.getpid() and not _alive(int(process)):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _make_readable(path: Path, folder: Path) -> None:
    """Let others read a file where the folder lets them: some writers make it private."""
    if path.is_file():
        path.chmod(path.stat().st_mode | (folder.stat().st_mode & 0o044))


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with new_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people: indented, with each list of plain values on one line; NaN refused."""
    write_text(path, json_text(value) + "\n")


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
