"""Where the gradients of the training samples are kept: in memory, or in a file read in pieces.

Rows come batch by batch and are kept in that order, so that those of a batch lie together: one
write a matrix.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from layerif.core.files import writing_to
from layerif.core.files.tensors import bytes_of, checksum
from layerif.influence.estimators.block import Rows
from layerif.influence.subspaces.base import Matrix

FILE = "gradients.bin"


class GradientStore(Protocol):
    """Per-sample gradients of every matrix."""

    def put(self, first: int, gradients: Sequence[torch.Tensor]) -> int:
        """Keep the gradients of a batch, (b, d) for each matrix, as the rows from `first` on.

        Returns:
            Their checksum, which tells later whether they are still there.
        """

    def checksum(self, first: int, count: int) -> int:
        """That of `count` rows from `first` on as they are now."""

    def of(self, matrix: int) -> Rows:
        """(n, d) the gradients of one matrix."""


class MemoryStore:
    """One tensor a matrix in main memory."""

    def __init__(self, matrices: Sequence[Matrix], samples: int, dtype: torch.dtype) -> None:
        self._rows = [torch.empty(samples, matrix.size, dtype=dtype) for matrix in matrices]

    def put(self, first: int, gradients: Sequence[torch.Tensor]) -> int:
        for rows, gradient in zip(self._rows, gradients, strict=True):
            rows[first : first + len(gradient)] = gradient
        return 0  # what is in memory is there, or all is lost

    def checksum(self, first: int, count: int) -> int:
        return 0

    def of(self, matrix: int) -> torch.Tensor:
        return self._rows[matrix]


class DiskStore:
    """One file, matrix after matrix; what is read of it is no longer than the slice asked for.

    The system keeps as much of the file in memory as it has room for and gives that room up when it
    is wanted, so there is no need to choose beforehand. Written rows survive the process: killed,
    another one goes on. Whether they survived a loss of power too, their checksum tells: they are
    written in place, and the system may bring the step that vouches for them to the disk before.

    Raises:
        DiskError: as the file is opened or written to.
    """

    def __init__(
        self, folder: Path, matrices: Sequence[Matrix], samples: int, dtype: torch.dtype
    ) -> None:
        self._path = folder / FILE
        self._samples = samples
        self._dtype = dtype
        self._sizes = [matrix.size for matrix in matrices]
        ends = np.cumsum([samples * size for size in self._sizes], dtype=np.int64)
        self._offsets = [int(end) - samples * s for end, s in zip(ends, self._sizes, strict=True)]
        whole = int(ends[-1]) * dtype.itemsize
        # Opened without truncating it: another process may have written its rows already.
        with writing_to(self._path), self._path.open("ab") as file:
            if os.fstat(file.fileno()).st_size != whole:
                file.truncate(whole)

    def put(self, first: int, gradients: Sequence[torch.Tensor]) -> int:
        found = 0
        with writing_to(self._path), self._path.open("r+b", buffering=0) as file:
            for size, offset, gradient in zip(self._sizes, self._offsets, gradients, strict=True):
                file.seek((offset + first * size) * self._dtype.itemsize)
                rows = bytes_of(gradient.to(self._dtype))
                found = checksum([rows], found)
                _write_all(file, rows)
        return found

    def checksum(self, first: int, count: int) -> int:
        def pieces() -> Iterator[bytes]:
            with self._path.open("rb") as file:
                for size, offset in zip(self._sizes, self._offsets, strict=True):
                    file.seek((offset + first * size) * self._dtype.itemsize)
                    yield file.read(count * size * self._dtype.itemsize)

        return checksum(pieces())

    def move(self, folder: Path) -> None:
        """Move the file into another folder of the same disk."""
        self._path = self._path.replace(folder / FILE)

    def of(self, matrix: int) -> FileRows:
        shape = (self._samples, self._sizes[matrix])
        return FileRows(self._path, self._offsets[matrix], shape, self._dtype)


class FileRows:
    """(n, d) gradients in a file; a slice is a copy, and nothing else of it stays in memory."""

    device = torch.device("cpu")

    def __init__(self, path: Path, offset: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._path = path
        self._offset = offset * dtype.itemsize
        self._dtype = np.dtype(str(dtype).removeprefix("torch."))
        self.shape = torch.Size(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, step: int) -> Iterator[torch.Tensor]:
        """(step, d) rows at a time, read one after another; the last may be fewer."""
        samples, size = self.shape
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for first in range(0, samples, step):
                rows = min(step, samples - first)
                read = np.fromfile(file, self._dtype, rows * size)
                yield torch.from_numpy(read.reshape(rows, size))

    def __getitem__(self, index: Any) -> torch.Tensor:
        mapped = np.memmap(self._path, self._dtype, "r", self._offset, tuple(self.shape))
        return torch.from_numpy(np.array(mapped[index]))


def _write_all(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
