"""Hidden states of all calibration text between two layers, in memory or in files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from layerif.core.choices import HiddenStatesPlace
from layerif.core.files import require_disk, writing_to
from layerif.core.progress import note
from layerif.errors import InputError
from layerif.estimates import free_memory

# Of what is free, hidden states get at most this much of memory.
SHARE = 0.5


class OnDisk:
    """A memory-mapped file a batch: the system holds in memory what there is room for.

    As a list, whose tensors come back on the device that they came from.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: list[torch.Tensor] = []
        self._devices: list[torch.device] = []

    def append(self, tensor: torch.Tensor) -> None:
        path = self._folder / f"hidden-{len(self._maps):05d}.bin"
        with writing_to(path), path.open("wb") as file:
            # A page that finds no room on the disk when it is written would end the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, tensor.nbytes)
        mapped = torch.from_file(
            str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype
        ).view(tensor.shape)
        self._maps.append(mapped.copy_(tensor))
        self._devices.append(tensor.device)

    def __getitem__(self, batch: int) -> torch.Tensor:
        return self._maps[batch].to(self._devices[batch])

    def __setitem__(self, batch: int, tensor: torch.Tensor) -> None:
        self._maps[batch].copy_(tensor)
        self._devices[batch] = tensor.device


# One tensor a batch, (rows, positions, hidden size), replaced by others of the same shape.
HiddenStates = list[torch.Tensor] | OnDisk


@contextmanager
def hidden_states(
    place: HiddenStatesPlace, size: int, device: torch.device, folder: Path | None
) -> Iterator[HiddenStates]:
    """A store of hidden states, empty; its files go at the end.

    Args:
        place: `memory`, `disk`, or `auto`: in memory, unless they take more than half of what is
            free there and there is a folder.
        size: bytes of all of them.
        device: where the model takes its tokens.
        folder: of the run's steps; None without a run folder.

    Raises:
        InputError: no folder for files, or no room on its disk, which is also refused later where
            others have taken it meanwhile.
    """
    below = None if folder is None else folder / "hidden"
    if below is not None:
        shutil.rmtree(below, ignore_errors=True)  # of a run that was killed
    if place == "auto":
        fits = below is None or size <= SHARE * free_memory(device)
        place = "memory" if fits else "disk"
    if place == "memory":
        yield []
        return
    if below is None:
        raise InputError(
            "hidden states on disk lie in the run folder, and none is given; run `layerif prune`, "
            "or keep them in memory"
        )
    require_disk(below, size, "the hidden states of the calibration text")
    below.mkdir()
    note(f"hidden states: {size / 1e9:.2f} GB on disk, in {below}")
    try:
        yield OnDisk(below)
    finally:
        shutil.rmtree(below, ignore_errors=True)
