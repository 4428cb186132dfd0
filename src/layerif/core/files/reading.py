"""Files that others have written: opened here and nowhere else, each failure begins with its cause.

A file is looked at before it is read: it has to be a regular file of bounded size, so that nothing
waits for a pipe or fills the memory. Text has to be UTF-8, with a byte order mark or without.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layerif.errors import InputError, LayerifError

# Bytes that are read of a file of text or of rows, and of one that describes something.
MOST_TEXT = 2 << 30
MOST_JSON = 512 << 20
# A message may hold what a file says, but not all of it.
MOST_QUOTED = 80
MOST_CAUSE = 240
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: Path, what: str, most: int = MOST_TEXT) -> None:
    """Refuse what cannot be read as one file, before it is opened.

    Args:
        path: links are followed.
        what: was expected there, for the message.
        most: bytes it may have.

    Raises:
        InputError: there is nothing, or a folder, a pipe or a device; it is closed to this user, or
            larger.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected {what}") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{brief(str(path), 200)} cannot be read ({cause(error)}); expected {what}"
        ) from None
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder; expected {what}")
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise InputError(f"{path} is {kind}; expected a regular file with {what}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} is closed to you: its permissions do not let you read it")
    if found.st_size > most:
        raise InputError(
            f"{path} has {found.st_size / 1e9:.3g} GB, and at most {most / 1e9:.3g} GB are read; "
            f"expected {what}"
        )


def read_text(path: Path, what: str, most: int = MOST_TEXT) -> str:
    """The text of a UTF-8 file, line ends as they are, without its byte order mark.

    Raises:
        InputError: as `check_file`; or it is in another encoding, or holds a NUL character; names
            the line.
    """
    check_file(path, what, most)
    with parsing(path, what), path.open("rb") as file:
        raw = file.read(most + 1)
    marked = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    # Of plain letters each second byte is zero.
    if marked or (len(raw) > 3 and b"\0\0" in (raw[:4:2], raw[1:4:2])):
        raise InputError(f"{path} is text in UTF-16 or UTF-32; save it as UTF-8 (expected {what})")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: the byte 0x{raw[error.start]:02x} at {error.start} does not "
            f"belong to UTF-8 ({error.reason}); save the file as UTF-8 (expected {what})"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}, line {line}: there is a NUL character; expected {what}")
    return text


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def parsing(path: Path | str, what: str) -> Iterator[None]:
    """Whatever a library raises on a file of others is an InputError that begins with the cause.

    Which errors its parser may raise on damaged bytes, no library promises.

    Raises:
        InputError: names `path` and `what` was expected.
    """
    try:
        yield
    except LayerifError:
        raise
    except Exception as error:
        raise InputError(f"{path}: {cause(error)}; expected {what}") from None


def cause(error: BaseException) -> str:
    """What an error of a library says, on one line and not too long."""
    if isinstance(error, RecursionError):
        return "too deeply nested"
    if isinstance(error, MemoryError):
        return "too large for memory"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return brief(" ".join(text.split()) or type(error).__name__, MOST_CAUSE)


def brief(value: Any, most: int = MOST_QUOTED) -> str:
    """What a file holds, for a message: a text as it is, else its repr; cut where it is long."""
    text = value if isinstance(value, str) else _repr(value)
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def quoted(value: Any, most: int = MOST_QUOTED) -> str:
    """The repr of a value that a file holds, cut where it is long."""
    return brief(_repr(value[: most + 1] if isinstance(value, str) else value), most)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an endless number, or endlessly deep
        return f"a {type(value).__name__}"
