"""Hessians of a layer's output error, one for all projections that are handed the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch

from layerif.calibration.statistics import never_run, not_finite, observed
from layerif.core.progress import note
from layerif.errors import NumericalError
from layerif.model.layers import Projection

# Share of the mean diagonal that is added to it, as SparseGPT's authors do (arXiv 2301.00774).
DAMPING = 0.01
# Each attempt has ten times the damping of the one before.
ATTEMPTS = 5


@dataclass(frozen=True)
class Factor:
    """What SparseGPT needs of a Hessian.

    Attributes:
        upper: (in, in) U, upper triangular with U^T U = H^-1, H damped.
        dead: (in,) bool, features that are zero on all of the text; H is 1 there.
        damping: the share of the mean diagonal that was added to it.
    """

    upper: torch.Tensor
    dead: torch.Tensor
    damping: float


@dataclass
class _Seen:
    """An input whose readers are not all known yet."""

    inputs: torch.Tensor
    version: int
    keys: list[str]


class _Mean:
    """Running mean over tokens of 2 x x^T, in float32 or better."""

    def __init__(self, inputs: torch.Tensor) -> None:
        size = inputs.shape[-1]
        exact = torch.promote_types(inputs.dtype, torch.float32)
        self.value = torch.zeros(size, size, dtype=exact, device=inputs.device)
        self.count = 0

    def add(self, inputs: torch.Tensor) -> None:
        flat = inputs.flatten(0, -2).to(self.value.dtype)
        if len(flat):
            total = self.count + len(flat)
            self.value.addmm_(flat.T, flat, beta=self.count / total, alpha=2 / total)
            self.count = total


class Hessians:
    """H = 2 X X^T over tokens of every projection's inputs, once for those that share them.

    Inputs are counted by the set of projections that they are handed to, which is known once one
    of these runs again; until then they are kept.
    """

    def __init__(self, projections: Sequence[Projection]) -> None:
        self._projections = projections
        self._means: dict[tuple[str, ...], _Mean] = {}
        self._seen: list[_Seen] = []
        self._last: tuple[tuple[str, ...], Factor] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe the projections' inputs while the layer runs."""
        try:
            with observed(self._projections, self._observe):
                yield
            self._count()
        finally:
            self._seen = []

    def sharing(self, projection: Projection) -> tuple[str, ...]:
        """The projections whose inputs are the same; just itself where it has others besides."""
        found = self._sets(projection)
        return found[0] if len(found) == 1 else (projection.key,)

    def mean(self, projection: Projection) -> torch.Tensor:
        """(in, in) mean over tokens of 2 x x^T, not damped; not to be changed.

        Raises:
            NumericalError: the projection was never run, or its inputs are not finite.
        """
        means = [self._means[keys] for keys in self._sets(projection)]
        count = sum(mean.count for mean in means)
        if not count:
            raise never_run(projection.key)
        value = means[0].value
        if len(means) > 1:
            value = reduce(torch.add, (mean.value * (mean.count / count) for mean in means))
        if not value.diagonal().sum().isfinite():
            raise not_finite(projection.key)
        return value

    def factor(self, projection: Projection) -> Factor:
        """The factor of the damped Hessian; that of the last projection where it shares its inputs.

        Raises:
            NumericalError: as `mean`; or no damping tried makes the Hessian positive definite.
        """
        sharing = self.sharing(projection)
        if self._last is None or self._last[0] != sharing:
            self._last = None  # not two at a time
            self._last = (sharing, factorise(self.mean(projection), projection.key))
        return self._last[1]

    def _sets(self, projection: Projection) -> list[tuple[str, ...]]:
        return [keys for keys in self._means if projection.key in keys]

    def _observe(self, key: str, inputs: torch.Tensor) -> None:
        if any(key in seen.keys for seen in self._seen):
            self._count()
        for seen in self._seen:
            if seen.inputs is inputs:
                seen.keys.append(key)
                return
        self._seen.append(_Seen(inputs, inputs._version, [key]))

    def _count(self) -> None:
        for seen in self._seen:
            if seen.inputs._version != seen.version:
                raise NumericalError(
                    f"the inputs of {seen.keys[0]} are changed in place after it has run, so no "
                    "Hessian can be made of them; use the pruning method wanda"
                )
            keys = tuple(seen.keys)
            if keys not in self._means:
                self._means[keys] = _Mean(seen.inputs)
            self._means[keys].add(seen.inputs)
        self._seen = []


def factorise(hessian: torch.Tensor, name: str, damping: float = DAMPING) -> Factor:
    """Damp a Hessian and factorise its inverse, with ten times the damping where that fails.

    H^-1 = U^T U. With H = R R^T, R upper triangular (Cholesky from the last row up), U = R^-1, so
    the inverse itself is never formed.

    Args:
        hessian: (in, in), symmetric, left as it is.
        name: of the projection, for messages.
        damping: share of the mean diagonal, of the first attempt.

    Raises:
        NumericalError: it fails with every damping tried; names the projection.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    level = diagonal.masked_fill(dead, 1)
    mean = level.mean()
    for _ in range(ATTEMPTS):
        damped = hessian.flip(0, 1)
        damped.diagonal().copy_((level + damping * mean).flip(0))
        lower, info = torch.linalg.cholesky_ex(damped)
        if not info.item():
            root = lower.flip(0, 1)
            unit = torch.eye(len(root), dtype=root.dtype, device=root.device)
            upper = torch.linalg.solve_triangular(root, unit, upper=True)
            if bool(upper.isfinite().all()):
                return Factor(upper, dead, damping)
        note(f"the Hessian of {name} is not positive definite at damping {damping:g}")
        damping *= 10
    raise NumericalError(
        f"the Hessian of {name} is not positive definite, not even at damping {damping / 10:g} of "
        "its mean diagonal; use more calibration text, dtype='float32', or the pruning method wanda"
    )
