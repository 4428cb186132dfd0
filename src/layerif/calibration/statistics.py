"""Statistics of the inputs of a layer's projections, streamed over batches: norms and Hessians."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import reduce

import torch

from layerif.core.progress import note
from layerif.errors import NumericalError
from layerif.model.expert_calls import expert_calls
from layerif.model.layers import Projection

# Share of the mean diagonal that is added to it, as SparseGPT's authors do (arXiv 2301.00774).
DAMPING = 0.01
# Each attempt has ten times the damping of the one before.
ATTEMPTS = 5
NEVER_RUN = "{} was never run on the calibration text"
NOT_FINITE = "the inputs of {} on the calibration text are not finite; try dtype='float32'"


class Statistics(ABC):
    """What is gathered of the inputs of one layer's projections.

    An expert that is given fewer tokens than it has inputs cannot be judged by them: what all the
    experts of its parameter are given takes their place.
    """

    def __init__(self, projections: Sequence[Projection]) -> None:
        self._projections = projections
        self._tokens = dict.fromkeys((p.key for p in projections), 0)
        self._experts: dict[str, list[Projection]] = {}
        for projection in projections:
            if projection.fused is not None:
                self._experts.setdefault(projection.fused, []).append(projection)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe the projections' inputs while the layer runs."""
        with observed(self._projections, self._count):
            yield
        self._end()
        for name, experts in self._experts.items():
            seldom = [p for p in experts if not self._enough(p)]
            if seldom:
                most = max(self._tokens[p.key] for p in seldom)
                note(
                    f"{len(seldom)} of {len(experts)} experts of {name} were given at most {most} "
                    f"tokens, fewer than their {seldom[0].in_features} inputs: what all its "
                    "experts were given counts for them (more text helps, or all_experts)"
                )

    def sharing(self, projection: Projection) -> tuple[str, ...]:
        """The projections that always had the same inputs as this one, itself among them.

        Work that depends on the inputs alone is done once for them, if they come one after another.
        """
        return tuple(self._sources(projection))

    def _sources(self, projection: Projection) -> list[str]:
        """The projections whose inputs count for this one: itself, mostly."""
        if projection.fused is None or self._enough(projection):
            return [projection.key]
        return [one.key for one in self._experts[projection.fused]]

    def _enough(self, projection: Projection) -> bool:
        return self._tokens[projection.key] >= projection.in_features

    def _count(self, key: str, inputs: torch.Tensor) -> None:
        self._tokens[key] += inputs[..., 0].numel()
        self._observe(key, inputs)

    @abstractmethod
    def _observe(self, key: str, inputs: torch.Tensor) -> None:
        """Take note of the inputs (..., in) of one run of a projection."""

    @abstractmethod
    def _end(self) -> None:
        """Nothing more is observed."""


@contextmanager
def observed(
    projections: Sequence[Projection], observe: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Hand `observe` each projection's name and input, (..., in), whenever it runs inside."""
    with ExitStack() as hooks:
        hooks.enter_context(expert_calls(projections))
        for p in projections:
            hooks.enter_context(
                p.module.register_forward_pre_hook(
                    lambda _module, args, key=p.key: observe(key, args[0])
                )
            )
        yield


class InputNorms(Statistics):
    """|X_j|_2 of every input feature of every projection, accumulated in float64.

    Projections that are handed the same tensor (q, k and v; gate and up) share one sum. Nothing
    costly depends on norms, so `sharing` names each projection alone.
    """

    def __init__(self, projections: Sequence[Projection]) -> None:
        super().__init__(projections)
        self._sums: dict[str, torch.Tensor] = {}
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def norms(self, projection: Projection) -> torch.Tensor:
        """(in_features,) float64 |X_j|_2 over all tokens seen.

        Raises:
            NumericalError: the projection was never run, or its inputs are not finite.
        """
        seen = [self._sums[key] for key in self._sources(projection) if key in self._sums]
        if not seen:
            raise NumericalError(NEVER_RUN.format(projection.key))
        sums = reduce(torch.add, seen)
        if not sums.isfinite().all():
            raise NumericalError(NOT_FINITE.format(projection.key))
        return sums.sqrt()

    def _observe(self, key: str, inputs: torch.Tensor) -> None:
        if self._last is None or self._last[0] is not inputs:
            exact = torch.promote_types(inputs.dtype, torch.float32)
            flat = inputs.flatten(0, -2).to(exact)
            self._last = (inputs, flat.square().sum(0, dtype=torch.float64))
        kept, squares = self._sums.get(key), self._last[1]
        self._sums[key] = squares if kept is None else kept + squares

    def _end(self) -> None:
        self._last = None


@dataclass(frozen=True)
class Factor:
    """What SparseGPT and GPTQ need of a Hessian.

    Attributes:
        upper: (in, in) U, upper triangular with U^T U = H^-1, H damped.
        dead: (in,) bool, features that are zero on all of the text; H is 1 there.
        damping: the share of the mean diagonal that was added to it.
        order: (in,) the features of the rows and columns above, those with the largest diagonal
            first; None where they are as the projection has them.
    """

    upper: torch.Tensor
    dead: torch.Tensor
    damping: float
    order: torch.Tensor | None = None


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


class Hessians(Statistics):
    """H = 2 X X^T over tokens of every projection's inputs, once for those that share them.

    Inputs are counted by the set of projections that they are handed to, which is known once one
    of these runs again; until then they are kept.
    """

    def __init__(self, projections: Sequence[Projection]) -> None:
        super().__init__(projections)
        self._means: dict[tuple[str, ...], _Mean] = {}
        self._seen: list[_Seen] = []
        # Of one input, and of one parameter's experts together: those that are given too few tokens
        # stand between others that are given enough.
        self._last: dict[bool, tuple[tuple[str, ...], Factor]] = {}
        self._pooled: tuple[list[tuple[str, ...]], torch.Tensor] | None = None

    def sharing(self, projection: Projection) -> tuple[str, ...]:
        """The projections whose inputs are the same; just itself where it has others besides."""
        found = self._sets(projection)
        return found[0] if len(found) == 1 else super().sharing(projection)

    def mean(self, projection: Projection) -> torch.Tensor:
        """(in, in) mean over tokens of 2 x x^T, not damped; not to be changed.

        Raises:
            NumericalError: the projection was never run, or its inputs are not finite.
        """
        sets = [keys for keys in self._sets(projection) if self._means[keys].count]
        if not sets:
            raise NumericalError(NEVER_RUN.format(projection.key))
        value = self._means[sets[0]].value if len(sets) == 1 else self._together(sets)
        if not value.diagonal().sum().isfinite():
            raise NumericalError(NOT_FINITE.format(projection.key))
        return value

    def factor(self, projection: Projection, *, ordered: bool = False) -> Factor:
        """The factor of the damped Hessian; that of the last projection where it shares its inputs.

        Args:
            ordered: take the features by their diagonal, the largest first; always the same for
                one layer.

        Raises:
            NumericalError: as `mean`; or no damping tried makes the Hessian positive definite.
        """
        sharing = self.sharing(projection)
        pooled = len(self._sources(projection)) > 1
        if pooled not in self._last or self._last[pooled][0] != sharing:
            self._last.pop(pooled, None)  # not two at a time
            hessian, order = self.mean(projection), None
            if ordered:
                order = hessian.diagonal().argsort(descending=True, stable=True)
                hessian = hessian[order][:, order]
            factor = factorise(hessian, projection.key)
            self._last[pooled] = (sharing, replace(factor, order=order))
        return self._last[pooled][1]

    def _together(self, sets: list[tuple[str, ...]]) -> torch.Tensor:
        """The mean over the tokens of several inputs; made once for all that ask for it in turn."""
        if self._pooled is None or self._pooled[0] != sets:
            self._pooled = None
            count = sum(self._means[keys].count for keys in sets)
            shares = (self._means[keys].value * (self._means[keys].count / count) for keys in sets)
            self._pooled = (sets, reduce(torch.add, shares))
        return self._pooled[1]

    def _sets(self, projection: Projection) -> list[tuple[str, ...]]:
        sources = self._sources(projection)
        return [keys for keys in self._means if not set(keys).isdisjoint(sources)]

    def _observe(self, key: str, inputs: torch.Tensor) -> None:
        if any(key in seen.keys for seen in self._seen):
            self._end()
        for seen in self._seen:
            if seen.inputs is inputs:
                seen.keys.append(key)
                return
        self._seen.append(_Seen(inputs, inputs._version, [key]))

    def _end(self) -> None:
        """Count the inputs whose readers are all known."""
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
