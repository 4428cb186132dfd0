"""Collected gradients, as an artifact, and where those of the training samples are kept.

They are kept in memory, or in a file read in pieces. Rows come batch by batch and are kept in that
order, so that those of a batch lie together: one write a matrix.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerif.artifacts import GRADIENTS
from layerif.artifacts.gradients import (
    GRADIENTS_FILE,
    ROWS_FILE,
    VECTORS_FILE,
    GradientsRecord,
)
from layerif.core.files import load_tensors, new_folder, save_tensors, writing_to
from layerif.core.files.tensors import bytes_of, checksum
from layerif.core.fingerprint import Fingerprint
from layerif.errors import InputError
from layerif.influence.estimators.block import Factors
from layerif.influence.subspaces.base import Matrix


class MemoryStore:
    """One tensor a matrix in main memory; its methods are those of `DiskStore`."""

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
    is needed, so there is no need to choose beforehand. Written rows survive a process that is
    killed, and another one goes on. Their checksum tells whether they survived a loss of power too:
    they are written in place, and their step may reach the disk before they do.

    Raises:
        DiskError: as the file is opened or written to.
    """

    def __init__(
        self, folder: Path, matrices: Sequence[Matrix], samples: int, dtype: torch.dtype
    ) -> None:
        self._path = folder / ROWS_FILE
        self._samples = samples
        self._dtype = dtype
        self._sizes = [matrix.size for matrix in matrices]
        *self._offsets, numbers = (samples * d for d in accumulate(self._sizes, initial=0))
        whole = numbers * dtype.itemsize
        # Opened without truncating it: another process may have written its rows already.
        with writing_to(self._path), self._path.open("ab") as file:
            if os.fstat(file.fileno()).st_size != whole:
                file.truncate(whole)

    def put(self, first: int, gradients: Sequence[torch.Tensor]) -> int:
        """Keep the gradients of a batch, (b, d) for each matrix, as the rows from `first` on.

        Returns:
            Their checksum, which tells later whether they are still there.
        """
        found = 0
        with writing_to(self._path), self._path.open("r+b", buffering=0) as file:
            for size, offset, gradient in zip(self._sizes, self._offsets, gradients, strict=True):
                file.seek((offset + first * size) * self._dtype.itemsize)
                rows = bytes_of(gradient.to(self._dtype))
                found = checksum([rows], found)
                _write_all(file, rows)
        return found

    def checksum(self, first: int, count: int) -> int:
        """That of `count` rows from `first` on as they are now."""

        def pieces() -> Iterator[bytes]:
            with self._path.open("rb") as file:
                for size, offset in zip(self._sizes, self._offsets, strict=True):
                    file.seek((offset + first * size) * self._dtype.itemsize)
                    yield file.read(count * size * self._dtype.itemsize)

        return checksum(pieces())

    def move(self, folder: Path) -> None:
        """Move the file into another folder of the same disk."""
        self._path = self._path.replace(folder / ROWS_FILE)

    def of(self, matrix: int) -> FileRows:
        """(n, d) the gradients of one matrix."""
        shape = (self._samples, self._sizes[matrix])
        return FileRows(self._path, self._offsets[matrix], shape, self._dtype)


class FileRows:
    """(n, d) gradients in a file; a slice is a copy, and nothing else stays in memory."""

    device = torch.device("cpu")

    def __init__(self, path: Path, offset: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._path = path
        self._offset = offset * dtype.itemsize
        self._dtype = np.dtype(str(dtype).removeprefix("torch."))
        self.shape = torch.Size(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, step: int) -> Iterator[torch.Tensor]:
        """(step, d) rows at a time, each in place of the last; there may be fewer in the end."""
        samples, size = self.shape
        with self._path.open("rb") as file:
            file.seek(self._offset)
            # One buffer for all pieces: fresh memory for each would cost as much as reading it.
            buffer = np.empty((min(step, samples), size), self._dtype)
            for first in range(0, samples, step):
                rows = buffer[: samples - first]
                file.readinto(rows.data)
                yield torch.from_numpy(rows)

    def __getitem__(self, index: Any) -> torch.Tensor:
        mapped = np.memmap(self._path, self._dtype, "r", self._offset, tuple(self.shape))
        return torch.from_numpy(np.array(mapped[index]))


@dataclass(frozen=True, eq=False)
class Gradients:
    """The gradients of training samples, and the mean gradient of validation samples.

    Attributes:
        record: what they are of.
        store: of every matrix (n, d), batch by batch.
        means: for each matrix (d,) float64, the mean validation gradient.
        losses: (n,) float64 of the training samples, batch by batch.
        order: (n,) which sample each row is of.
        factors: of each matrix by its key, for estimators that go by positions; else empty.
    """

    record: GradientsRecord
    store: MemoryStore | DiskStore
    means: Sequence[torch.Tensor]
    losses: torch.Tensor
    order: torch.Tensor
    factors: Mapping[str, Factors] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Gradients:
        """Gradients that were kept in a folder; they are read as they are needed.

        Raises:
            InputError: the folder holds none, or not all of them.
        """
        if not (folder / GRADIENTS_FILE).is_file():
            raise InputError(
                f"{folder} holds no kept gradients; a folder that `layerif score --keep-gradients` "
                "wrote is expected"
            )
        record = GradientsRecord.load(folder / GRADIENTS_FILE)
        vectors = load_tensors(folder / VECTORS_FILE)
        dtype = getattr(torch, record.dtype)
        matrices = [Matrix(m.key, m.projection, m.shape) for m in record.matrices]
        size = record.train_samples * sum(m.size for m in matrices) * dtype.itemsize
        path = folder / ROWS_FILE
        if vectors is None or not path.is_file() or path.stat().st_size != size:
            raise InputError(
                f"{folder} does not hold all of its gradients ({ROWS_FILE} of {size:,} bytes and "
                f"an undamaged {VECTORS_FILE} are expected); collect them again"
            )
        means = vectors["means"].split([matrix.size for matrix in matrices])
        factors = {
            m.key: Factors(vectors[f"inputs/{m.key}"], vectors[f"outputs/{m.key}"])
            for m in matrices
            if f"inputs/{m.key}" in vectors
        }
        store = DiskStore(folder, matrices, record.train_samples, dtype)
        return cls(record, store, means, vectors["losses"], vectors["order"], factors)

    def keep(self, folder: Path, fingerprint: Fingerprint) -> None:
        """Move gradients that lie on disk into a folder, from which `open` reads them.

        Raises:
            InputError: the folder holds something else, or the gradients are in memory.
        """
        if not isinstance(self.store, DiskStore):
            raise InputError("gradients in memory are not kept; collect them with keep='disk'")
        record = self.record.model_copy(update={"fingerprint": fingerprint})
        vectors = {"means": torch.cat(list(self.means)), "losses": self.losses, "order": self.order}
        for key, own in self.factors.items():
            vectors |= {f"inputs/{key}": own.inputs, f"outputs/{key}": own.outputs}
        with new_folder(folder, GRADIENTS) as part:
            save_tensors(part / VECTORS_FILE, vectors)
            record.save(part / GRADIENTS_FILE)
            self.store.move(part)


def _write_all(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
