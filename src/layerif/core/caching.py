"""What was computed before is looked up, by all that it depends on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from layerif.core.checkpoint import NO_STEPS, Steps, resumable, tidy
from layerif.core.files import load_tensors, save_tensors
from layerif.core.fingerprint import Fingerprint
from layerif.core.progress import note
from layerif.errors import DiskError

if TYPE_CHECKING:
    import torch


def remembered(
    folder: Path,
    fingerprint: Fingerprint,
    compute: Callable[[Steps], dict[str, torch.Tensor]],
    *,
    optional: bool = False,
) -> dict[str, torch.Tensor]:
    """What `compute` returns, taken from `folder` where it was computed before.

    Cut short, it goes on after its last step; a process that wants the same at the same time waits
    for the first. What is damaged is computed again.

    Args:
        folder: of such results, a file each.
        fingerprint: all that the tensors depend on.
        compute: does the work, keeping its steps.
        optional: go on without where the folder cannot be written, which is noted once.

    Raises:
        DiskError: nothing can be kept there, and that is not optional.
    """
    path = folder / f"{fingerprint.digest()}.safetensors"
    found = load_tensors(path)
    if found is not None:
        # A killed process may have left its steps; where that folder is closed now, they stay.
        with suppress(OSError, DiskError) if optional else nullcontext():
            tidy(path)
        return found
    try:
        with resumable(path, fingerprint, wait=True) as steps:
            found = load_tensors(path)  # another process may have been faster
            if found is None:
                found = compute(_WhileThereIsRoom(steps.folder) if optional else steps)
                save_tensors(path, found)
    except DiskError as error:
        if not optional:
            raise
        _note_unkept(folder, error.reason)
    return compute(NO_STEPS) if found is None else found


class _WhileThereIsRoom(Steps):
    """Steps that the work can do without: the first that cannot be kept is the last."""

    _full = False

    def save(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        if self.folder is not None and not self._full:
            try:
                super().save(step, tensors)
            except DiskError as error:
                self._full = True
                _note_unkept(self.folder.parent, error.reason)


@cache
def _note_unkept(folder: Path, why: str) -> None:
    note(
        f"nothing can be kept in {folder} ({why}); the work goes on without, and is done again "
        "next time"
    )
