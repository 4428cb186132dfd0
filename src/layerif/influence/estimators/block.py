"""One block: the gradients that one inverse Hessian covers, read in pieces brought to float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch

from layerif.errors import InputError
from layerif.influence.estimators.factored import columns_of, split_times

# Numbers brought to float64 at a time, 1.25 MiB: measured fastest. A piece stays in a core's cache
# between its conversion and its use, and memory of that size is reused without page faults.
CHUNK = 160 * 1024

# Columns taken at a time where whole columns are wanted: a page of a memory-mapped float32 file
# holds so many, and is then read once.
COLUMNS = 1024


class Rows(Protocol):
    """(n, d) gradients of one matrix, of which slices are read: a tensor, or rows in a file."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def split(self, step: int, /) -> Iterable[torch.Tensor]: ...

    def __getitem__(self, index: Any, /) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Factors:
    """Kronecker factors of a matrix's Fisher information (EK-FAC); their scale does not matter.

    Attributes:
        inputs: A (in, in), E[a a^T] over tokens, a the input as the trainable matrix sees it.
        outputs: S (out, out), E[e e^T], e the gradient with respect to the matrix's output.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """One trainable matrix of a block: what is known of it before any training gradient.

    Attributes:
        name: of the matrix.
        validation: v (d,), the mean gradient of the validation samples; read in float64.
        shape: (out, in) of the matrix, d = out * in, for estimators that use it (EK-FAC).
        factors: for EK-FAC, where they were collected.
    """

    name: str
    validation: torch.Tensor
    shape: tuple[int, int] | None = None
    factors: Factors | None = None

    def __post_init__(self) -> None:
        out, columns = self.shape or (self.size, 1)
        if self.validation.ndim != 1 or out * columns != self.size:
            raise InputError(
                f"{self.name} has a validation gradient of shape {tuple(self.validation.shape)} "
                f"and a matrix of shape {self.shape}; expected (d,), and (out, in) with "
                "d = out * in"
            )

    @property
    def size(self) -> int:
        """d: entries of the matrix."""
        return self.validation.numel()


@dataclass(frozen=True, eq=False)
class Block:
    """Per-sample gradients of one block; its columns are those of its parts, one after another.

    Attributes:
        name: of the block; random numbers of an estimator are drawn by it.
        parts: the trainable matrices; their validation gradients are brought to float64 on the
            device of the gradients.
        gradients: of each part (n, d_p), any floating dtype: a tensor, or rows in a file, since it
            is read in pieces and never copied as a whole.
    """

    name: str
    parts: tuple[Part, ...]
    gradients: tuple[Rows, ...]

    def __post_init__(self) -> None:
        wanted = [(self.samples, part.size) for part in self.parts]
        if not wanted or [tuple(g.shape) for g in self.gradients] != wanted or not self.samples:
            raise InputError(
                f"the gradients of block {self.name} have shapes "
                f"{[tuple(g.shape) for g in self.gradients]}; expected (samples, d) for each "
                f"of its parts, of sizes {[p.size for p in self.parts]}, and at least one sample"
            )
        device = self.gradients[0].device
        moved = (replace(p, validation=p.validation.to(device).double()) for p in self.parts)
        object.__setattr__(self, "parts", tuple(moved))

    @classmethod
    def of(
        cls,
        name: str,
        gradients: torch.Tensor,
        validation: torch.Tensor,
        *,
        shape: tuple[int, int] | None = None,
        factors: Factors | None = None,
    ) -> Self:
        """The block of one matrix: G (n, d) and v (d,)."""
        return cls(name, (Part(name, validation, shape, factors),), (gradients,))

    @property
    def samples(self) -> int:
        """n."""
        return len(self.gradients[0]) if self.gradients else 0

    @property
    def size(self) -> int:
        """d of the whole block."""
        return sum(part.size for part in self.parts)

    @property
    def validation(self) -> torch.Tensor:
        """v (d,) float64 of the whole block."""
        return torch.cat([part.validation for part in self.parts])

    def rows(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows of G in float64, (b, d) at a time; each piece lasts until the next is asked for."""
        step = min(max(1, CHUNK // self.size), self.samples)
        device = self.gradients[0].device
        # One buffer for all pieces: fresh memory for each costs more than what is done with it.
        buffer = torch.empty(step, self.size, dtype=torch.float64, device=device)
        places = [buffer[:, own] for own in columns_of(self.parts)]
        first = 0
        for pieces in zip(*(gradients.split(step) for gradients in self.gradients), strict=True):
            count = len(pieces[0])
            for place, piece in zip(places, pieces, strict=True):
                place[:count].copy_(piece)
            yield slice(first, first + count), buffer[:count]
            first += count

    def columns(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Columns of G in float64, (n, b) at a time."""
        step = max(COLUMNS, CHUNK // self.samples)
        for columns, gradients in zip(columns_of(self.parts), self.gradients, strict=True):
            for first in range(0, gradients.shape[1], step):
                piece = gradients[:, first : first + step].double()
                start = columns.start + first
                yield slice(start, start + piece.shape[1]), piece

    def mean_square(self) -> float:
        """mean_i |g_i|^2; one read."""
        total = sum(torch.linalg.vector_norm(rows).item() ** 2 for _, rows in self.rows())
        return total / self.samples

    def products(self, x: torch.Tensor) -> torch.Tensor:
        """(parts, n) share of each part in G x, for x (d,); one read."""
        found = x.new_empty(len(self.parts), self.samples)
        columns = columns_of(self.parts)
        for rows, piece in self.rows():
            found[:, rows] = split_times(piece, x, columns)
        return found


@dataclass(frozen=True, eq=False)
class Hessian:
    """H = G^T G / n + lambda I of one block, which is never formed."""

    block: Block
    damping: float

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """H x (d,) for x (d,): one read of the gradients, each piece used twice."""
        product = self.damping * x
        for _, rows in self.block.rows():
            product.addmv_(rows.T, rows @ x, alpha=1 / self.block.samples)
        return product
