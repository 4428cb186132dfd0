"""Folders beside a result in which it is made, and what processes that died there have left.

Each is locked for as long as its process lives, on whatever machine: the system frees the lock of a
killed one, and the next that writes the same result clears the folder away.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_FILE = "lock"
# Where the result that is replaced lies until the new one has taken its place.
OLD = "old"


@contextmanager
def beside(place: Path) -> Iterator[Path]:
    """A folder of this process's own beside `place`; it goes at the end."""
    from filelock import FileLock, Timeout

    place.parent.mkdir(parents=True, exist_ok=True)
    sweep(place)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
        lock = FileLock(folder / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
            break
        except (Timeout, FileNotFoundError, FileExistsError):
            pass  # another process has swept it, before it was locked or at that moment
    try:
        yield folder
    finally:
        _clear(folder, place)
        lock.release()


def result_of(name: str) -> str | None:
    """What the result is called that is made in a folder of this name; None for any other name."""
    found = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}\.part", name)
    return None if found is None else found[1]


def sweep(place: Path) -> None:
    """Clear away what dead processes left beside `place`; a result moved aside comes back."""
    from filelock import FileLock, Timeout

    try:
        names = os.listdir(place.parent)
    except OSError:
        return
    for folder in (place.parent / name for name in names if result_of(name) == place.name):
        # Not where its process is alive, or it is another user's.
        with suppress(Timeout, OSError), FileLock(folder / LOCK_FILE, timeout=0):
            _clear(folder, place)


def _clear(folder: Path, place: Path) -> None:
    old = folder / OLD
    if os.path.lexists(old) and not os.path.lexists(place):
        old.rename(place)
    shutil.rmtree(folder, ignore_errors=True)
