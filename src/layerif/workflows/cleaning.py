"""What a run folder keeps for later, and its removal."""

from __future__ import annotations

import shutil
from pathlib import Path

from layerif.artifacts import GRADIENTS
from layerif.artifacts.gradients import GRADIENTS_FOLDER
from layerif.core.checkpoint import remove_leftover, steps_folder
from layerif.core.files import check_target, taken


def remove_kept(folder: Path) -> list[tuple[Path, int]]:
    """Remove gradients that a run folder keeps, and steps beside it that no process is at.

    Returns:
        What was removed, and the bytes that it took.

    Raises:
        InputError: files that layerif did not write lie among the gradients.
    """
    removed = []
    gradients = folder / GRADIENTS_FOLDER
    if GRADIENTS.is_finished(gradients):
        check_target(gradients, GRADIENTS)
        size = sum(map(taken, gradients.iterdir()))
        shutil.rmtree(gradients)
        removed.append((gradients, size))
    steps = steps_folder(folder)
    if steps.is_dir():
        size = sum(map(taken, steps.iterdir()))
        remove_leftover(folder)
        if not steps.is_dir():
            removed.append((steps, size))
    return removed
