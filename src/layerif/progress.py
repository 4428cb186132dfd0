"""Progress and notes for a person, on standard error; bars are drawn on a terminal alone.

Of several processes the first one speaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from layerif import processes

console = Console(stderr=True, highlight=False)


class Advance(Protocol):
    """Moves a progress bar on by a number of units."""

    def __call__(self, units: float = 1) -> None: ...


@contextmanager
def progress(description: str, total: float) -> Iterator[Advance]:
    """A progress bar over `total` units with the time left; nothing is drawn off a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not (console.is_terminal and processes.is_first()),
    ) as bar:
        task = bar.add_task(description, total=total)

        def advance(units: float = 1) -> None:
            bar.advance(task, units)

        yield advance


def note(message: str) -> None:
    """One dim line beside the progress bars; for facts worth knowing, not for results."""
    if processes.is_first():
        console.print(message, style="dim", markup=False, soft_wrap=True)
