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
    from layerif.core.files import check_place, write_text
    from layerif.errors import InputError
    from layerif.workflows.template import template

    check_place(path, folder=False)
    if path.exists():
        raise InputError(f"{path} already exists; name another file: layerif init other.yaml")
    write_text(path, template())
    say(f"wrote {path}; look it over, then: layerif run {path}", as_json=False)
