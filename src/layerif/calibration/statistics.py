"""Statistics of the inputs of a layer's projections, streamed over batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from layerif.errors import NumericalError
from layerif.model import Projection


class InputNorms:
    """|X_j|_2 of every input feature of every projection, accumulated in float64.

    Projections that are handed the same tensor (q, k and v; gate and up) share one sum.
    """

    def __init__(self, projections: Sequence[Projection]) -> None:
        self._projections = projections
        self._sums: dict[str, torch.Tensor] = {}
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe the projections' inputs while the layer runs."""
        handles = [
            projection.module.register_forward_pre_hook(self._observer(projection.key))
            for projection in self._projections
        ]
        try:
            yield
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    def norms(self, projection: Projection) -> torch.Tensor:
        """(in_features,) float64 |X_j|_2 over all tokens seen.

        Raises:
            NumericalError: the projection was never run, or its inputs are not finite.
        """
        sums = self._sums.get(projection.key)
        if sums is None:
            raise NumericalError(f"{projection.key} was never run on the calibration text")
        if not sums.isfinite().all():
            raise NumericalError(
                f"the inputs of {projection.key} on the calibration text are not finite; try "
                "--dtype float32"
            )
        return sums.sqrt()

    def _observer(self, key: str) -> Any:
        def observe(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            inputs = args[0]
            if self._last is None or self._last[0] is not inputs:
                exact = torch.promote_types(inputs.dtype, torch.float32)
                flat = inputs.flatten(0, -2).to(exact)
                squares = flat.square().sum(0, dtype=torch.float64)
                self._last = (inputs, squares)
            squares = self._last[1]
            kept = self._sums.get(key)
            self._sums[key] = squares if kept is None else kept + squares

        return observe
