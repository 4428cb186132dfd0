"""The disk: what may be written and how, and what is read from files of others."""

from layerif.files.arrays import read_npy, read_numbers
from layerif.files.failures import disk_error, writing_to
from layerif.files.patterns import check_patterns
from layerif.files.plain import parse_json, read_json, read_yaml
from layerif.files.reading import (
    brief,
    cause,
    check_file,
    file_hash,
    parsing,
    quoted,
    read_bytes,
    read_text,
)
from layerif.files.room import has_room, require_disk, taken
from layerif.files.sealing import is_whole, seal
from layerif.files.tables import READERS, check_columns, read_cells, read_parquet, read_rows
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
    "READERS",
    "brief",
    "cache_folder",
    "cause",
    "check_columns",
    "check_file",
    "check_patterns",
    "disk_error",
    "file_hash",
    "has_room",
    "is_whole",
    "json_text",
    "load_tensors",
    "new_file",
    "new_folder",
    "parse_json",
    "parsing",
    "quoted",
    "read_bytes",
    "read_cells",
    "read_json",
    "read_npy",
    "read_numbers",
    "read_parquet",
    "read_rows",
    "read_text",
    "read_yaml",
    "refuse_existing",
    "require_disk",
    "save_tensors",
    "seal",
    "taken",
    "write_json",
    "write_text",
    "writing_to",
]
