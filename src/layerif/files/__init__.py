"""The disk: what may be written and how, and what is read from files of others."""

from layerif.files.reading import read_json
from layerif.files.writing import (
    cache_folder,
    has_room,
    json_text,
    new_file,
    new_folder,
    refuse_existing,
    require_disk,
    write_json,
    write_text,
)

__all__ = [
    "cache_folder",
    "has_room",
    "json_text",
    "new_file",
    "new_folder",
    "read_json",
    "refuse_existing",
    "require_disk",
    "write_json",
    "write_text",
]
