"""What may be written where, and what may be replaced: what layerif wrote, never a person's files.

Decided before the work (`check_target`), and again when the result takes its place (`writing`).
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from layerif.core.files.leftovers import result_of
from layerif.errors import InputError

# Bytes of a name: what lies hidden beside a result has a longer one, and disks take 255.
LONGEST_NAME = 220
# Where the format is in what layerif writes: JSON begins with it, safetensors and pictures
# have it in their headers.
_HEAD = 4096
_NAMED = 3


@dataclass(frozen=True)
class Kind:
    """A kind of result: how what layerif wrote is told from other files.

    Attributes:
        format: that its file names, without the version: `layerif.results`; empty for any.
        mark: the file of that format in a folder, whose presence says that the result is whole;
            empty where the result is one file.
        names: patterns of the other files of the folder.
        checks: whether a file of such a name is ours, by more than its name.
        whole: whether the folder is replaced as a whole, or file by file with others beside them.
    """

    format: str = ""
    mark: str = ""
    names: tuple[str, ...] = ()
    checks: Mapping[str, Callable[[Path], bool]] = field(default_factory=dict)
    whole: bool = True

    def wrote(self, path: Path) -> bool:
        """Whether a file is of this format."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD)
        return re.search(rb'["\0>]' + re.escape(self.format.encode()) + b"/", head) is not None

    def is_finished(self, place: Path) -> bool:
        """Whether a whole result of this kind is at `place`."""
        path = place / self.mark
        return path.is_file() if not self.format else self.wrote(path)

    def owns(self, path: Path) -> bool:
        """Whether an entry of the folder is one of those that such a result consists of."""
        if (made := result_of(path.name)) is not None and not path.is_symlink():
            # Left by a process that died while it wrote one of them.
            return path.is_dir() and self._names(made)
        if path.is_symlink() or not path.is_file():
            return False
        if path.name == self.mark:
            return self.is_finished(path.parent)
        check = self.checks.get(path.name, None if self.whole else self.wrote)
        return (check is None or check(path)) and self._names(path.name)

    def _names(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.names)

    def foreign(self, place: Path, *, mixed: bool = True) -> list[str]:
        """Names of what is at `place`, is no part of such a result, and would be lost.

        Args:
            mixed: whether files of a result may be written to a folder of others, of which none
                is lost.
        """
        if not self.mark:
            empty = not place.exists() or (place.is_file() and place.stat().st_size == 0)
            return [] if empty or self.wrote(place) else [place.name]
        if not place.is_dir():
            return [place.name] if place.exists() else []
        entries = sorted(os.listdir(place))
        own = [name for name in entries if self.owns(place / name)]
        if self.whole:
            return [name for name in entries if name not in own or self.mark not in own]
        if not own and not mixed:
            return entries
        named = [name for name in entries if name == self.mark or name in self.names]
        return [name for name in named if name not in own]


def target(path: Path) -> Path:
    """Where `path` really lies: what is written goes through links, which stay links."""
    return Path(os.path.realpath(path))


def check_target(path: Path, kind: Kind, *, overwrite: bool = True, mixed: bool = True) -> None:
    """Refuse what cannot be written, or would lose what layerif did not write.

    Args:
        path: a file, or a folder where `kind` has a mark.
        overwrite: whether a result of this kind may be replaced.
        mixed: as for `Kind.foreign`.

    Raises:
        InputError: one of these; nothing on disk has changed.
    """
    check_place(path, folder=bool(kind.mark))
    place = target(path)
    if foreign := kind.foreign(place, mixed=mixed):
        _refuse(path, place, kind, foreign)
    holds = any(place.iterdir()) if place.is_dir() else place.exists() and place.stat().st_size
    if holds and not overwrite:
        raise InputError(
            f"{path} already holds another result; choose another place, "
            "or pass overwrite=True to replace it"
        )


def check_place(path: Path, *, folder: bool) -> None:
    """Refuse a path that no file, or no folder, can be written to.

    Raises:
        InputError: it is a device or the like, or the folder that one works in, or closed, or its
            name will not do.
    """
    try:
        _check_name(path)
    except FileNotFoundError:
        raise InputError("the current folder no longer exists; change to another") from None
    check_ordinary(path, folder=folder)
    place, here = target(path), target(Path())
    if place in (here, *here.parents):
        raise InputError(
            f"{str(path)!r} is the current folder, or one that it lies in, and cannot be the "
            "result; name a file or folder inside it"
        )
    if folder and place.is_mount():
        raise InputError(f"{path} is a mounted disk; name a folder inside it")
    above = next(parent for parent in place.parents if parent.exists())
    for writable in (above, place):
        if writable.is_file() and not os.access(writable, os.W_OK):
            raise InputError(f"{path} cannot be written: it is closed to you")
        if writable == above and not writable.is_dir():
            raise InputError(f"{path} cannot be written: {above} is a file")
        if writable.is_dir():
            try:
                with tempfile.TemporaryFile(dir=writable):
                    pass
            except OSError as error:
                raise InputError(
                    f"{path} cannot be written: nothing can be written to the folder {writable} "
                    f"({error.strerror})"
                ) from None


def check_ordinary(path: Path, *, folder: bool) -> None:
    """Refuse to write over whatever is neither a regular file nor a folder, links followed.

    Raises:
        InputError: there is a device, a pipe or a socket; or a folder where a file is to be
            written, or a file where a folder is.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            f"{path} is neither a file nor a folder but a device, pipe or socket; nothing is "
            "written there"
        )
    if not folder and stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; a file is to be written, so name one inside it")


def _check_name(path: Path) -> None:
    text = str(path)
    if text == "-":
        raise InputError("'-' names no file; as_json prints the result instead of a table")
    if re.search(r"[\0-\x1f\x7f-\x9f]", text):
        raise InputError(f"{text!a} cannot be written: it holds control characters")
    name = target(path).name
    try:
        size = len(name.encode())
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{text!a} cannot be written: the name is not UTF-8") from None
    if size > LONGEST_NAME:
        raise InputError(
            f"the name {name[:40]}... has {size} bytes; give one of at most {LONGEST_NAME}"
        )


def _refuse(path: Path, place: Path, kind: Kind, foreign: Sequence[str]) -> None:
    expected = kind.format or "such a result"
    if foreign == [place.name] and place.is_file():
        found = f"is a file that is not of the form {expected}, and is not replaced"
    else:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        found = (
            f"already holds files that are no part of {expected}, and they are not replaced: "
            f"{', '.join(foreign[:_NAMED])}{more}"
        )
    raise InputError(f"{path} {found}; choose another place, or move this away")
