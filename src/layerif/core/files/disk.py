"""What a disk refuses: too little room, said beforehand, and errors of libraries, by file."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerif.errors import DiskError, InputError, LayerifError

_REMEDIES = {
    errno.ENOSPC: "make room there, or write to another disk",
    errno.EDQUOT: "make room in your quota, or write to another disk",
    errno.EFBIG: "the disk, or this process's limit (`ulimit -f`), allows no file of that size",
    errno.EROFS: "write to another disk",
    errno.EACCES: "write to a folder that is open to you",
    errno.EPERM: "write to a folder that is open to you",
}
# Rust's libraries (safetensors, tokenizers) give the number in words alone; torch the system's
# words, or nothing but that its archive has not come to the length that it should have.
_NUMBER = re.compile(r"\(os error (\d+)\)")
_WORDS = {os.strerror(number): number for number in _REMEDIES}
_ARCHIVE = re.compile("inline_container|PytorchStreamWriter")

# Never fill a disk to the brim: others write there too.
DISK_MARGIN = 1.1


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Inside, a file or folder is written; the system's refusals become one error.

    Args:
        path: what is written, as the error calls it.

    Raises:
        DiskError: the disk is full or read-only, or the folder is closed; says what would help.
    """
    try:
        yield
    except LayerifError:
        raise
    except Exception as error:
        number = _refusal(error, path)
        if number is None:
            raise
        raise disk_error(OSError(number, ""), path) from error


def disk_error(error: OSError, path: Path) -> DiskError:
    """The error for one of the system's that came while `path` was written."""
    number = error.errno or errno.EIO
    reason = os.strerror(number)
    reason = reason[:1].lower() + reason[1:]
    remedy = _REMEDIES.get(number, "write to another folder")
    return DiskError(f"{path} cannot be written: {reason}; {remedy}", reason)


def _refusal(error: Exception, path: Path) -> int | None:
    """The system's number for what refused to write; None where the error is of another kind."""
    if isinstance(error, OSError) and error.errno is not None:
        # What is not there any more was taken away by someone: no refusal of the disk.
        return error.errno if error.errno != errno.ENOENT and _concerns(error, path) else None
    text = str(error)
    if found := _NUMBER.search(text):
        return int(found[1])
    for words, number in _WORDS.items():
        if words in text:
            return number
    if isinstance(error, OSError) or _ARCHIVE.search(text):
        return errno.ENOSPC  # of fewer bytes written than asked for, neither says why
    return None


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the file of an error is the one that is written, or lies beside or above it."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return True  # a write to an open file names none
    folder = os.path.abspath(path.parent)
    file = os.path.abspath(os.fsdecode(error.filename))
    return os.path.commonpath([folder, file]) in (folder, file)


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
    folder = folder.absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def _in_words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
