"""Keep the progress bars and warnings of transformers away from ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.std import tqdm
from transformers.utils import logging


@contextmanager
def quiet_transformers(*, warnings: bool = True) -> Iterator[None]:
    """No progress bars from transformers inside; its switches are left as they were.

    Args:
        warnings: whether it may warn; else errors alone are logged, unless more is asked for.
    """
    enabled, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if not warnings and verbosity == logging.WARNING:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if enabled:
            logging.enable_progress_bar()


@contextmanager
def quiet_bars() -> Iterator[None]:
    """No progress bars of tqdm inside, for a library that has no switch for its own."""
    begin = tqdm.__init__

    def disabled(bar: Any, *args: Any, **options: Any) -> None:
        begin(bar, *args, **{**options, "disable": True})

    tqdm.__init__ = disabled
    try:
        yield
    finally:
        tqdm.__init__ = begin
