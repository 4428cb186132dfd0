"""What every estimator shares: its options, and the solution that it gives for a block.

An estimator is one function, `(block, options) -> Solution`; `registry.register` gives it a name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from layerif.errors import InputError

# Above every eigenvalue of float32 gradients, and far enough from where float64 ends.
MOST_DAMPING = 1e100


@dataclass(frozen=True)
class Damping:
    """lambda in H = mean_i g_i g_i^T + lambda I: a rule, or a number.

    Attributes:
        factor: of the rule lambda = factor * mean_i |g_i|^2 / d, for each block by itself. The mean
            of H's eigenvalues without lambda is mean |g|^2 / d, so 0.1 is a tenth of it.
        value: lambda itself in every block, in place of the rule; unit of a squared gradient.
    """

    factor: float = 0.1
    value: float | None = None

    def __post_init__(self) -> None:
        for name, number in (("damping", self.factor), ("damping value", self.value)):
            if number is not None and not 0 < number <= MOST_DAMPING:
                raise InputError(
                    f"{name} must be positive and at most {MOST_DAMPING:g}, not {number}"
                )

    def of(self, mean_square: float, size: int) -> float:
        """lambda of a block with mean_i |g_i|^2 = `mean_square` and d = `size`.

        It is 0 for a silent block, one without any gradient, whatever the rule or the number.
        """
        if mean_square == 0:
            return 0.0
        return self.factor * mean_square / size if self.value is None else self.value


@dataclass(frozen=True)
class EstimatorOptions:
    """Which estimator, and all that changes its result.

    Attributes:
        name: as registered.
        damping: lambda's rule or number.
        tolerance: relative residual |H x - v| / |v| at which an iterative estimator stops, and
            above which a solution counts as not converged.
        max_iterations: where it stops at the latest; each takes one read of the gradients.
        seed: of its random numbers, which are drawn for each block by its name.
        sweep: factors of the damping rule at which every block is solved besides, in the same
            reads of the gradients.
    """

    name: str = "datainf"
    damping: Damping = Damping()
    tolerance: float = 1e-8
    max_iterations: int = 1000
    seed: int = 0
    sweep: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance must lie between 0 and 1, not {self.tolerance}")
        if self.max_iterations < 1:
            raise InputError(f"max_iterations must be at least 1, not {self.max_iterations}")
        for factor in self.sweep:
            Damping(factor)  # checks it

    @property
    def dampings(self) -> tuple[Damping, ...]:
        """The damping, and those of the sweep."""
        return (self.damping, *map(Damping, self.sweep))


@dataclass(frozen=True, eq=False)
class Solution:
    """Influence of every training sample through one block.

    Attributes:
        by_part: (parts, n) float64, the share of each part: g_ip . x_p, where I_i = g_i . x. Shares
            of a block of several parts may be far larger than their sum, with either sign.
        influence: (n,) float64, I_i = v^T H^-1 g_i: the predicted decrease of the validation loss
            when sample i is upweighted. Positive: the sample helps.
        damping: lambda used; 0 in a silent block, None for an estimator without one.
        silent: every gradient of the block is zero, and so is its influence.
        iterations: steps of an iterative estimator, else None.
        residual: |H x - v| / |v| where a system was solved, else None.
        converged: the residual is at most the tolerance.
    """

    by_part: torch.Tensor
    influence: torch.Tensor
    damping: float | None
    silent: bool = False
    iterations: int | None = None
    residual: float | None = None
    converged: bool = True

    @classmethod
    def of(cls, by_part: torch.Tensor, damping: float | None, **more: object) -> Solution:
        """The solution whose influence is the sum of its parts."""
        return cls(by_part, by_part.sum(0), damping, **more)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it as tensors; what is None is left out."""
        numbers = {
            "damping": self.damping,
            "iterations": self.iterations,
            "residual": self.residual,
        }
        return {
            "by_part": self.by_part.cpu(),
            "influence": self.influence.cpu().clone(),
            "silent": torch.tensor(self.silent),
            "converged": torch.tensor(self.converged),
        } | {
            name: torch.tensor(number, dtype=torch.float64 if name != "iterations" else torch.int64)
            for name, number in numbers.items()
            if number is not None
        }

    @classmethod
    def of_tensors(cls, tensors: dict[str, torch.Tensor]) -> Solution:
        """The solution of which `tensors` gave these."""
        vectors = {"by_part", "influence"}
        numbers = {name: t.item() for name, t in tensors.items() if name not in vectors}
        return cls(tensors["by_part"], tensors["influence"], **{"damping": None, **numbers})  # type: ignore[arg-type]

    @classmethod
    def of_silence(cls, parts: int, samples: int, damping: float | None = 0.0) -> Solution:
        """The solution of a block in which every gradient is zero: no influence, and no 0/0."""
        nothing = torch.zeros(parts, samples, dtype=torch.float64)
        return cls(nothing, nothing[0], damping, silent=True)
