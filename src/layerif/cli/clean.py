"""`layerif clean`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli.output import say
from layerif.errors import InputError


def clean(
    folder: Annotated[
        Path, typer.Argument(help="Run folder, or the result of a command.", show_default=False)
    ],
) -> None:
    """Remove what a run folder keeps for later: gradients, and steps of work that was cut short.

    Results stay.
    """
    from layerif.core.checkpoint import steps_folder
    from layerif.workflows.cleaning import remove_kept

    places = remove_kept(folder)
    if not places:
        raise InputError(
            f"{folder} keeps nothing for later: neither gradients nor {steps_folder(folder)} exist"
        )
    for place, size in places:
        say(f"removed {place} ({size / 1e9:.2f} GB)", as_json=False)
