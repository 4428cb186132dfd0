"""Folders with something in them, and what is in them."""

from __future__ import annotations

import os
from pathlib import Path

from layerif.core.files import Kind


def names(folder: Path) -> list[str]:
    """All names in a folder, hidden ones too: leftovers would be hidden."""
    return sorted(os.listdir(folder))


def fill(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


# Any file may be of such a folder.
FOLDER = Kind("", "weights", ("*",))
