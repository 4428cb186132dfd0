"""Room on a disk: refused beforehand where there is too little, what is there already counted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from layerif.errors import InputError

# Never fill a disk to the brim: others write there too.
DISK_MARGIN = 1.1


def require_disk(
    folder: Path, size: float, what: str, *, remedy: str = "choose another place"
) -> None:
    """Refuse beforehand to write `size` bytes to the disk of `folder` where there is no room.

    Args:
        folder: need not exist yet.
        size: bytes that are still to be written, less what is there already.
        what: takes the room, for the error.
        remedy: what to do instead of making room.

    Raises:
        InputError: there is none; says how much is free.
    """
    if not has_room(folder, size):
        raise InputError(
            f"{what} take {_in_words(size)} of disk at {folder}, where {_in_words(_free(folder))} "
            f"are free; make room, or {remedy}"
        )


def has_room(folder: Path, size: float) -> bool:
    """Whether `size` bytes can be written to the disk of `folder`, with some to spare."""
    return size <= 0 or size * DISK_MARGIN <= _free(folder)


def taken(path: Path) -> int:
    """Bytes of disk that a file takes, or all files beneath a folder; 0 where there is none.

    A file that was only given its length takes none for what was never written.
    """
    if path.is_dir():
        inside = (Path(at) / name for at, _, names in os.walk(path) for name in names)
        return sum(map(taken, inside))
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _free(folder: Path) -> int:
    standing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(standing).free


def _in_words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
