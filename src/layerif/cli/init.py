"""`layerif init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli.output import say


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe to start from; `layerif run` follows it."""
    from importlib.resources import files

    from layerif.errors import InputError
    from layerif.files import refuse_existing, write_text

    if path.exists():
        raise InputError(f"{path} is there already; name another file: layerif init other.yaml")
    refuse_existing(path, overwrite=False)
    write_text(path, files("layerif.studies").joinpath("template.yaml").read_text("utf-8"))
    say(f"wrote {path}; look it over, then: layerif run {path}", as_json=False)
