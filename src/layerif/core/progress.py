"""Progress and notes for a person, on standard error: a bar on a terminal, lines off it.

How long work takes is said early: once its first units took a while, and a longer one is left.

Of several processes the first one speaks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from layerif.core import processes
from layerif.core.terminal import Console

console = Console(stderr=True)

# Seconds between the lines that take a bar's place: from the first to the last, doubled each time.
FIRST_WAIT, LAST_WAIT = 10.0, 60.0
# Work done within so many seconds was found finished; it says nothing of the rate.
FOUND_WITHIN = 1.0
# Seconds that the first estimate is taken from, and those left from which on it is worth a line.
ESTIMATE_FROM, LONG = 2.0, 20.0


class Advance(Protocol):
    """Moves a progress bar on by a number of units."""

    def __call__(self, units: float = 1) -> None: ...


@contextmanager
def progress(description: str, total: float, *, bar: bool = True) -> Iterator[Advance]:
    """A progress bar over `total` units with the time left; off a terminal, lines that say so.

    Args:
        bar: False for work whose units have bars of their own: lines on a terminal too.
    """
    if not processes.is_first():
        yield lambda units=1: None
        return
    lines = _Lines(description, total, once=bar and console.is_terminal)
    if not (bar and console.is_terminal):
        yield lines
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as drawn:
        task = drawn.add_task(description, total=total)

        def advance(units: float = 1) -> None:
            drawn.advance(task, units)
            lines(units)

        yield advance


class _Lines:
    """What is done, at what rate, and how long the rest takes: a line at growing intervals.

    Of long work the first line comes as soon as there is a rate; with `once` it is the only one.
    """

    def __init__(self, description: str, total: float, *, once: bool) -> None:
        self._description, self._total, self._once = description, total, once
        self._said = False
        self._done = self._found = 0.0
        self._began = self._measured_from = time.monotonic()
        self._wait = FIRST_WAIT
        self._due = self._began + self._wait

    def __call__(self, units: float = 1) -> None:
        self._done += units
        now = time.monotonic()
        if now - self._began < FOUND_WITHIN:
            self._measured_from, self._found = now, self._done
            return
        if self._done == self._total:
            return
        taken = now - self._measured_from
        rate = (self._done - self._found) / taken if taken else 0.0
        left = max(self._total - self._done, 0) / rate if rate else 0.0
        early = not self._said and taken >= ESTIMATE_FROM and left >= LONG
        if early or (now >= self._due and not self._once):
            self._said = True
            self._wait = min(2 * self._wait, LAST_WAIT)
            self._due = now + self._wait
            note(
                f"{self._description}: {self._done:,.0f} of {self._total:,.0f}, "
                f"{_per_time(rate)}, about {_duration(left)} left"
            )


def _per_time(rate: float) -> str:
    for per, seconds in (("second", 1), ("minute", 60)):
        if rate * seconds >= 1:
            return f"{rate * seconds:,.3g} a {per}"
    return f"{rate * 3600:,.3g} an hour"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def note(message: str) -> None:
    """One dim line beside the progress bars; for facts worth knowing, not for results."""
    if processes.is_first():
        console.print(message, style="dim", soft_wrap=True)
