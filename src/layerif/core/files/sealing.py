"""Folders that others write for us, sealed when they are whole: what was damaged since is told."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from layerif.core.files.failures import writing_to
from layerif.core.files.tensors import checksum
from layerif.core.files.writing import write_json

SEAL = "checksums.json"
_PIECE = 1 << 20


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files beside them, once all of it is on the disk.

    Raises:
        DiskError: the disk refuses.
    """
    with writing_to(folder):
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL]
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_json(folder / SEAL, {str(p.relative_to(folder)): checksum(_pieces(p)) for p in files})


def is_whole(folder: Path) -> bool:
    """Whether the files that a folder was sealed with are there, as they were then."""
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return bool(sealed) and all(
            checksum(_pieces(folder / name)) == said for name, said in sealed.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
