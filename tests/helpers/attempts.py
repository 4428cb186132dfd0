"""A copy of a good file is damaged and read in a sandbox, and what became of it is told."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from helpers.mutations import damage
from layerif.errors import LayerifError

BAIT = "bait"
# How a message must not begin.
DENIAL = re.compile(r"\s*$|no |\S+ is (neither|(no|not an?) (model|folder|adapter|causal)) ")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: writes good ones into an empty folder.
        read: reads the folder, and uses what it has read as far as reading can tell.
        heavy: whether a model is opened for it.
        writes: whether its reader may write beside what it reads.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    heavy: bool = False
    writes: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation.

    Attributes:
        what: `opened`, `refused`, or what must not be: `traceback`, `message` (one that is long, or
            begins with a denial), `changed`, `outside`.
        file: that was damaged.
        detail: the error.
    """

    what: str
    file: str
    detail: str = ""


def attempt(kind: Kind, good: Path, sandbox: Path, draw: Random | None) -> Outcome:
    """Damage a copy of a good folder in a sandbox, read it, and see what becomes of it.

    Without a draw it is left as it is.
    """
    shutil.rmtree(sandbox, ignore_errors=True)
    folder = sandbox / "outer" / "folder"
    shutil.copytree(good, folder)
    file = "" if draw is None else str(damage(draw, folder).relative_to(folder))
    baits = [_bait(place, good) for place in (sandbox, sandbox / "outer")]
    before = _seen(sandbox)
    what, detail = "opened", ""
    try:
        with _elsewhere(sandbox):
            kind.read(folder)
    except LayerifError as error:
        what, detail = "refused", str(error)
        if len(detail) > 600 or "\n" in detail or DENIAL.match(detail):
            what = "message"
    except SystemExit as stopped:
        what = "opened" if stopped.code in (0, None) else "refused"
        detail = f"exit {stopped.code}"
        if stopped.code not in (0, None, 2, 3, 4):
            what = "traceback"
    except Exception as error:
        what, detail = "traceback", f"{type(error).__name__}: {error}"
    if any(os.stat(path).st_atime for bait in baits for path in bait):
        return Outcome("outside", file, f"a file outside of the folder was read; {detail}")
    if not kind.writes and _seen(sandbox) != before:
        return Outcome("changed", file, f"something was written; {detail}")
    return Outcome(what, file, detail)


def _bait(place: Path, good: Path) -> list[Path]:
    """Good files where none should be looked for, with a time of access that reading changes."""
    paths = [place / BAIT, *(place / path.name for path in good.iterdir() if path.is_file())]
    paths = [path for path in paths if not path.exists()]
    for path in paths:
        source = good / path.name
        path.write_bytes(source.read_bytes() if source.is_file() else b"{}")
        os.utime(path, (0, 1e9))
    return paths


def _seen(sandbox: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sandbox.rglob("*")
        if path.is_file()
    }


@contextmanager
def _elsewhere(sandbox: Path) -> Iterator[None]:
    """A working directory and a cache of the sandbox's own."""
    here, cache = Path.cwd(), os.environ.get("LAYERIF_CACHE")
    (sandbox / "cwd").mkdir()
    os.environ["LAYERIF_CACHE"] = str(sandbox.with_name("cache"))
    os.chdir(sandbox / "cwd")
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.pop("LAYERIF_CACHE")
        if cache is not None:
            os.environ["LAYERIF_CACHE"] = cache
