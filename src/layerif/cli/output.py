"""What commands print: a table for people, or JSON for machines, on standard output.

Of several processes the first one prints.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import to_jsonable_python
from rich.table import Table

from layerif.core.files import json_text
from layerif.core.processes import is_first
from layerif.core.terminal import Console, harmless_json

console = Console()


def emit(table: Table | None, value: Any, *lines: str, as_json: bool) -> None:
    """Print the table and the lines below it, or with `as_json` the value: artifacts or plain."""
    if not is_first():
        return
    if as_json:
        print(harmless_json(json_text(to_jsonable_python(value, inf_nan_mode="constants"))))
        return
    if table is not None:
        console.print(table)
    say(*lines)


def say(*lines: str) -> None:
    """Print lines as they are, however long."""
    for line in lines:
        console.print(line, soft_wrap=True)
