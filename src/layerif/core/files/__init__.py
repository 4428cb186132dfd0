"""The disk: what may be written and how, and what is read from files of others."""

from layerif.core.files.disk import disk_error, has_room, require_disk, taken, writing_to
from layerif.core.files.leftovers import beside, sweep
from layerif.core.files.patterns import check_patterns
from layerif.core.files.plain import parse_json, read_json, read_yaml
from layerif.core.files.reading import (
    brief,
    cause,
    check_file,
    file_hash,
    parsing,
    quoted,
    read_text,
)
from layerif.core.files.recipes import RECIPE_FILE, is_recipe, keep_recipe, recipe_path
from layerif.core.files.tables import (
    READERS,
    check_columns,
    read_cells,
    read_npy,
    read_numbers,
    read_parquet,
    read_rows,
)
from layerif.core.files.targets import Kind, check_place, check_target, target
from layerif.core.files.tensors import is_whole, load_tensors, save_tensors, seal
from layerif.core.files.writing import (
    cache_folder,
    json_text,
    new_file,
    new_folder,
    sync,
    write_json,
    write_text,
)
