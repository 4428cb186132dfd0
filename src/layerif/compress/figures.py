"""What a method can say of a projection that it has changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one projection.

    Attributes:
        error: |(W - W') X|^2 / |W X|^2 over the calibration tokens; None where the method takes no
            statistics.
        damping: the share of the Hessian's mean diagonal added to it; None without a Hessian.
    """

    error: float | None = None
    damping: float | None = None


def relative(lost: torch.Tensor, whole: torch.Tensor) -> float:
    """lost / whole, and 0 where there was nothing to lose; not finite where one of them is not."""
    return 0.0 if bool(whole == 0) else float(lost.clamp(min=0) / whole)


def output_energy(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """tr(W H W^T) as float64: the squared norm of W X, up to a factor of all."""
    return (weight @ hessian).mul_(weight).sum(dtype=torch.float64)
