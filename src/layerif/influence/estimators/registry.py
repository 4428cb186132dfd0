"""Estimators by name: those of this package, and any that a user registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerif.errors import InputError
from layerif.influence.estimators.base import Damping, EstimatorOptions, Solution
from layerif.influence.estimators.block import Block, Part
from layerif.influence.estimators.cg import cg
from layerif.influence.estimators.cosine import CosinePasses, cosine
from layerif.influence.estimators.datainf import DataInfPasses, datainf, datainf_sweep
from layerif.influence.estimators.ekfac import EkfacPasses, ekfac, ekfac_sweep, ekfac_workspace
from layerif.influence.estimators.exact import exact, exact_sweep, exact_workspace
from layerif.influence.estimators.grad_dot import DotPasses, grad_dot
from layerif.influence.estimators.lissa import lissa, lissa_sweep
from layerif.influence.estimators.passes import Passes

Solve = Callable[[Block, EstimatorOptions], Solution]
Sweep = Callable[[Block, Sequence[Damping], EstimatorOptions], list[Solution]]
OpenPasses = Callable[[str, Sequence[Part], int, Sequence[Damping]], Passes]
Workspace = Callable[[Sequence[tuple[int, int]], int], int]


@dataclass(frozen=True)
class Estimator:
    """A registered estimator.

    Attributes:
        solve: influence through one block.
        damped: whether the result depends on the damping.
        iterative: whether it depends on the tolerance and on the most iterations.
        sweep: for several dampings, with what does not depend on them worked out once.
        passes: opens the form for gradients that are not kept (block name, parts, n, dampings).
        by_position: it uses the factors of the gradients position by position, for which the
            training samples are run once more where gradients are kept.
        workspace: bytes it takes beside the gradients of a block, from the (out, in) of its
            matrices and n; left out where that is little.
    """

    solve: Solve
    damped: bool = True
    iterative: bool = False
    sweep: Sweep | None = None
    passes: OpenPasses | None = None
    by_position: bool = False
    workspace: Workspace | None = None


_ESTIMATORS = {
    "datainf": Estimator(datainf, sweep=datainf_sweep, passes=DataInfPasses),
    "grad_dot": Estimator(grad_dot, damped=False, passes=DotPasses),
    "cosine": Estimator(cosine, damped=False, passes=CosinePasses),
    "exact": Estimator(exact, sweep=exact_sweep, workspace=exact_workspace),
    "cg": Estimator(cg, iterative=True),
    "lissa": Estimator(lissa, iterative=True, sweep=lissa_sweep),
    "ekfac": Estimator(
        ekfac,
        sweep=ekfac_sweep,
        passes=EkfacPasses,
        by_position=True,
        workspace=ekfac_workspace,
    ),
}


def register(name: str, estimator: Solve | Estimator) -> None:
    """Give an estimator a name: `score(..., estimator=name)` then uses it.

    Args:
        name: not taken yet.
        estimator: a function of a block and the options, or that with what else it can do.

    Raises:
        InputError: the name is taken.
    """
    if name in _ESTIMATORS:
        raise InputError(f"there already is an estimator {name!r}; choose another name")
    _ESTIMATORS[name] = estimator if isinstance(estimator, Estimator) else Estimator(estimator)


def find(name: str) -> Estimator:
    """The estimator of that name.

    Raises:
        InputError: there is none; the message lists those that are.
    """
    if name not in _ESTIMATORS:
        raise InputError(f"there is no estimator {name!r}; choose one of {', '.join(names())}")
    return _ESTIMATORS[name]


def names() -> list[str]:
    """Every estimator there is."""
    return list(_ESTIMATORS)


def checked_options(
    name: str,
    *,
    damping: float,
    damping_value: float | None,
    tolerance: float,
    max_iterations: int,
    seed: int = 0,
    sweep: Sequence[float] = (),
) -> EstimatorOptions:
    """Options from plain values, as commands and recipes have them; see `EstimatorOptions`.

    Raises:
        InputError: no such estimator, a number out of its range, or a sweep over a damping that the
            estimator has not.
    """
    estimator = find(name)
    if sweep and not estimator.damped:
        raise InputError(
            f"the estimator {name} has no damping to sweep over; leave out --damping-sweep, or "
            "choose datainf, exact or ekfac"
        )
    return EstimatorOptions(
        name, Damping(damping, damping_value), tolerance, max_iterations, seed, tuple(sweep)
    )
