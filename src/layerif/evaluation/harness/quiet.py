"""Keep the bars, log lines and prints of lm-evaluation-harness away from ours."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from layerif.core.progress import note


class _Notes(logging.Handler):
    """Hands on the first warning from each place in the code as a note."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._places: set[tuple[str, int]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        place = record.pathname, record.lineno
        if place not in self._places:
            self._places.add(place)
            note(f"lm-evaluation-harness: {' '.join(record.getMessage().split())}")


@contextmanager
def quiet_harness(level: int = logging.WARNING) -> Iterator[None]:
    """No bars and prints of lm-eval inside, and its log from `level` on as notes.

    What is changed is the logger and the modules of lm-eval, the switch of data sets' bars and
    standard output; each is put back as before.
    """
    import datasets

    logger = logging.getLogger("lm_eval")
    found = logger.level, logger.handlers, logger.propagate
    bars = datasets.is_progress_bar_enabled()
    logger.setLevel(level)
    logger.handlers, logger.propagate = [_Notes(level)], False
    datasets.disable_progress_bars()
    try:
        with redirect_stdout(io.StringIO()), _no_bars():
            yield
    finally:
        logger.setLevel(found[0])
        logger.handlers, logger.propagate = found[1], found[2]
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _no_bars() -> Iterator[None]:
    """The modules of lm-eval that draw bars get a `tqdm` that draws none."""
    from tqdm import tqdm

    def silent(*args: Any, **kwargs: Any) -> Any:
        return tqdm(*args, **{**kwargs, "disable": True})

    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("lm_eval.") and getattr(module, "tqdm", None) is tqdm
    ]
    for module in modules:
        module.tqdm = silent  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.tqdm = tqdm  # type: ignore[attr-defined]
