"""What commands print: a table for people, or JSON for machines, on standard output.

Of several processes the first one prints.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from layerif.core.files import json_text
from layerif.core.processes import is_first
from layerif.core.terminal import Console, harmless_json

console = Console()


def emit(table: Table | None, value: Any, *, as_json: bool) -> None:
    """Print the table, or with `as_json` the plain value."""
    if not is_first():
        return
    if as_json:
        print(harmless_json(json_text(value)))
    elif table is not None:
        console.print(table)


def say(message: str, *, as_json: bool) -> None:
    """A line beside a table; left out of JSON output."""
    if not as_json and is_first():
        console.print(message, soft_wrap=True)
