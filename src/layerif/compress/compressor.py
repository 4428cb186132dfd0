"""What changes a model by levels, one for each projection, and puts it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import torch

from layerif.model.layers import DecoderLayers, Projection

T = TypeVar("T")
# Makes (out, in) what a change of level adds to a projection's weights; small until it is called.
Change = Callable[[], torch.Tensor]


class Compressible(Protocol):
    """One projection with its inputs, compressed to any level, always from its original weights."""

    def at(self, level: int) -> torch.Tensor:
        """(out, in) its weights at a level."""

    def change(self, before: int, after: int) -> Change:
        """The weights at the level `after` less those at `before`."""


class Compressor(Protocol):
    """Projections compressed in place, to one list of levels after another.

    What a level says is the compressor's own: a pruner's is a number of zeros.
    """

    def at(self, levels: Sequence[int], keep: Callable[[int, Compressible], T] = ...) -> list[T]:
        """Set every projection to its level, as a compressed model would be saved.

        Args:
            levels: one for each projection.
            keep: is shown each projection by its place, with inputs as those compressed below it
                give them, and returns what is to be kept of it.

        Returns:
            For each projection what was kept.
        """

    def set(self, row: int, weight: torch.Tensor) -> None:
        """Give one projection other weights (out, in)."""


# Holds a model, its decoder layers and batches of calibration text; the options of the search name
# the method, and what else it takes.
Held = Callable[
    [Any, DecoderLayers, Sequence[dict[str, torch.Tensor]], Any],
    AbstractContextManager[Compressor],
]


@contextmanager
def put_back(projections: Sequence[Projection]) -> Iterator[list[torch.Tensor]]:
    """Weights may change inside; afterwards they are as before, to the bit, whatever happened.

    Yields:
        For each projection a copy of its weight, (out, in).
    """
    originals = [p.weight.clone(memory_format=torch.contiguous_format) for p in projections]
    try:
        yield originals
    finally:
        for projection, original in zip(projections, originals, strict=True):
            projection.weight.copy_(original)
