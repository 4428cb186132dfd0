"""What a library raises where a file cannot be written, as one error that names the file."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerif.errors import DiskError, LayerifError

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
        raise _disk_error(number, path) from error


def disk_error(error: OSError, path: Path) -> DiskError:
    """The error for one of the system's that came while `path` was written."""
    return _disk_error(error.errno or errno.EIO, path)


def _disk_error(number: int, path: Path) -> DiskError:
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
