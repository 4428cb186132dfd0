"""The recipe that a command leaves with its result; one that a person has edited is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerif.core.files.leftovers import sweep
from layerif.core.files.targets import target
from layerif.core.files.writing import write_text
from layerif.core.progress import note

RECIPE_FILE = "recipe.yaml"
# A recipe has a few kilobytes.
_LARGEST = 1 << 20


def recipe_path(out: Path, *, folder: bool) -> Path:
    """Where the recipe of a result lies: in the folder, or beside the file."""
    if folder:
        return out / RECIPE_FILE
    return out.with_name(f"{out.name.removesuffix('.json')}.recipe.yaml")


def keep_recipe(path: Path, text: str) -> None:
    """Write the recipe, unless one with a person's edits, or their own file, is there."""
    import yaml

    sweep(target(path))
    if not path.exists() or is_recipe(path):
        write_text(path, text)
    elif _parsed(path)[1] != yaml.safe_load(text):
        note(f"{path} is not a recipe of layerif and stays; no recipe is written")


def is_recipe(path: Path) -> bool:
    """Whether a file is a recipe exactly as layerif writes it, with no edits that could be lost."""
    import yaml

    text, value = _parsed(path)
    if not isinstance(value, dict) or not ("command" in value or {"model", "score"} <= set(value)):
        return False
    return yaml.safe_dump(value, sort_keys=False) == text


def _parsed(path: Path) -> tuple[str, Any]:
    import yaml

    try:
        if path.stat().st_size > _LARGEST:
            return "", None
        text = path.read_text(encoding="utf-8")
        return text, yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return "", None
