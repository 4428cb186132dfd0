"""The disk: what may be written and how, and what is read from files of others."""

from layerif.files.failures import disk_error, writing_to
from layerif.files.leftovers import sweep
from layerif.files.reading import read_json
from layerif.files.recipes import RECIPE_FILE, is_recipe, keep_recipe, recipe_path
from layerif.files.room import has_room, require_disk, taken
from layerif.files.sealing import is_whole, seal
from layerif.files.targets import Kind, check_place, check_target, target
from layerif.files.tensors import load_tensors, save_tensors
from layerif.files.writing import (
    cache_folder,
    json_text,
    new_file,
    new_folder,
    sync,
    write_json,
    write_text,
)

__all__ = [
    "RECIPE_FILE",
    "Kind",
    "cache_folder",
    "check_place",
    "check_target",
    "disk_error",
    "has_room",
    "is_recipe",
    "is_whole",
    "json_text",
    "keep_recipe",
    "load_tensors",
    "new_file",
    "new_folder",
    "read_json",
    "recipe_path",
    "require_disk",
    "save_tensors",
    "seal",
    "sweep",
    "sync",
    "taken",
    "target",
    "write_json",
    "write_text",
    "writing_to",
]
