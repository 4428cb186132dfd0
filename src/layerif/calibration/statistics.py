"""Statistics of the inputs of a layer's projections, streamed over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import torch

from layerif.errors import NumericalError
from layerif.model.layers import Projection


class Statistics(Protocol):
    """What is gathered of the inputs of one layer's projections."""

    def watching(self) -> AbstractContextManager[None]:
        """Observe the projections' inputs while the layer runs."""

    def sharing(self, projection: Projection) -> tuple[str, ...]:
        """The projections that always had the same inputs as this one, itself among them.

        Work that depends on the inputs alone is done once for them, if they come one after another.
        """


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
        with observed(self._projections, self._observe):
            yield
        self._last = None

    def sharing(self, projection: Projection) -> tuple[str, ...]:
        """The projection alone: nothing costly depends on norms."""
        return (projection.key,)

    def norms(self, projection: Projection) -> torch.Tensor:
        """(in_features,) float64 |X_j|_2 over all tokens seen.

        Raises:
            NumericalError: the projection was never run, or its inputs are not finite.
        """
        sums = self._sums.get(projection.key)
        if sums is None:
            raise never_run(projection.key)
        if not sums.isfinite().all():
            raise not_finite(projection.key)
        return sums.sqrt()

    def _observe(self, key: str, inputs: torch.Tensor) -> None:
        if self._last is None or self._last[0] is not inputs:
            exact = torch.promote_types(inputs.dtype, torch.float32)
            flat = inputs.flatten(0, -2).to(exact)
            squares = flat.square().sum(0, dtype=torch.float64)
            self._last = (inputs, squares)
        squares = self._last[1]
        kept = self._sums.get(key)
        self._sums[key] = squares if kept is None else kept + squares


@contextmanager
def observed(
    projections: Sequence[Projection], observe: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Hand `observe` each projection's name and input, (..., in), whenever it runs inside."""
    with ExitStack() as hooks:
        for p in projections:
            hooks.enter_context(
                p.module.register_forward_pre_hook(
                    lambda _module, args, key=p.key: observe(key, args[0])
                )
            )
        yield


def never_run(key: str) -> NumericalError:
    """The error for a projection that no text has reached."""
    return NumericalError(f"{key} was never run on the calibration text")


def not_finite(key: str) -> NumericalError:
    """The error for a projection whose inputs overflow."""
    return NumericalError(
        f"the inputs of {key} on the calibration text are not finite; try dtype='float32'"
    )
