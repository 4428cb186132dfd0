"""Statistics of the inputs of a layer's projections, streamed over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch

from layerif.core.progress import note
from layerif.errors import NumericalError
from layerif.model.experts import expert_calls
from layerif.model.layers import Projection


class Statistics(Protocol):
    """What is gathered of the inputs of one layer's projections."""

    def watching(self) -> AbstractContextManager[None]:
        """Observe the projections' inputs while the layer runs."""

    def sharing(self, projection: Projection) -> tuple[str, ...]:
        """The projections that always had the same inputs as this one, itself among them.

        Work that depends on the inputs alone is done once for them, if they come one after another.
        """


class Seen:
    """How many tokens each projection was given, and which experts were given too few.

    An expert with fewer tokens than inputs cannot be judged by them: what all experts of its
    parameter were given takes their place.
    """

    def __init__(self, projections: Sequence[Projection]) -> None:
        self._tokens = dict.fromkeys((p.key for p in projections), 0)
        self._experts: dict[str, list[Projection]] = {}
        for projection in projections:
            if projection.fused is not None:
                self._experts.setdefault(projection.fused, []).append(projection)

    def add(self, key: str, inputs: torch.Tensor) -> None:
        self._tokens[key] += inputs[..., 0].numel()

    def sources(self, projection: Projection) -> list[str]:
        """The projections whose statistics count for this one: itself, mostly."""
        if projection.fused is None or self._enough(projection):
            return [projection.key]
        return [one.key for one in self._experts[projection.fused]]

    def say(self) -> None:
        """Name the parameters some of whose experts were given too few tokens."""
        for name, experts in self._experts.items():
            seldom = [p for p in experts if not self._enough(p)]
            if seldom:
                most = max(self._tokens[p.key] for p in seldom)
                note(
                    f"{len(seldom)} of {len(experts)} experts of {name} were given at most {most} "
                    f"tokens, fewer than their {seldom[0].in_features} inputs: what all its "
                    "experts were given counts for them (more text helps, or all_experts)"
                )

    def _enough(self, projection: Projection) -> bool:
        return self._tokens[projection.key] >= projection.in_features


class InputNorms:
    """|X_j|_2 of every input feature of every projection, accumulated in float64.

    Projections that are handed the same tensor (q, k and v; gate and up) share one sum.
    """

    def __init__(self, projections: Sequence[Projection]) -> None:
        self._projections = projections
        self._sums: dict[str, torch.Tensor] = {}
        self._seen = Seen(projections)
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe the projections' inputs while the layer runs."""
        with observed(self._projections, self._observe):
            yield
        self._last = None
        self._seen.say()

    def sharing(self, projection: Projection) -> tuple[str, ...]:
        """The projection alone: nothing costly depends on norms."""
        return (projection.key,)

    def norms(self, projection: Projection) -> torch.Tensor:
        """(in_features,) float64 |X_j|_2 over all tokens seen.

        Raises:
            NumericalError: the projection was never run, or its inputs are not finite.
        """
        found = [self._sums[key] for key in self._seen.sources(projection) if key in self._sums]
        if not found:
            raise never_run(projection.key)
        sums = sum(found[1:], start=found[0])
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
        self._seen.add(key, inputs)
        kept = self._sums.get(key)
        self._sums[key] = squares if kept is None else kept + squares


@contextmanager
def observed(
    projections: Sequence[Projection], observe: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Hand `observe` each projection's name and input, (..., in), whenever it runs inside."""

    def hook(key: str) -> Any:
        return lambda _module, args: observe(key, args[0])

    with ExitStack() as hooks:
        hooks.enter_context(expert_calls(projections))
        for projection in projections:
            seen = projection.module.register_forward_pre_hook(hook(projection.key))
            hooks.enter_context(seen)
        yield


def never_run(key: str) -> NumericalError:
    """The error for a projection that no text has reached."""
    return NumericalError(f"{key} was never run on the calibration text")


def not_finite(key: str) -> NumericalError:
    """The error for a projection whose inputs overflow."""
    return NumericalError(
        f"the inputs of {key} on the calibration text are not finite; try dtype='float32'"
    )
