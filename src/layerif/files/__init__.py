"""The disk: what may be written and how, and what is read from files of others."""

from layerif.files.failures import disk_error, writing_to
from layerif.files.reading import read_json
from layerif.files.room import has_room, require_disk, taken
from layerif.files.sealing import is_whole, seal
from layerif.files.tensors import load_tensors, save_tensors
from layerif.files.writing import (
    cache_folder,
    json_text,
    new_file,
    new_folder,
    refuse_existing,
    write_json,
    write_text,
)

__all__ = [
    "cache_folder",
    "disk_error",
    "has_room",
    "is_whole",
    "json_text",
    "load_tensors",
    "new_file",
    "new_folder",
    "read_json",
    "refuse_existing",
    "require_disk",
    "save_tensors",
    "seal",
    "taken",
    "write_json",
    "write_text",
    "writing_to",
]
