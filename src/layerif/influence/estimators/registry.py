"""Estimators by name: those of this package, and any that a user registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.influence.estimators.base import Estimator, Solution
    from layerif.influence.estimators.block import Block
    from layerif.influence.options import SolveOptions

# Of the default, so that a recipe is written without importing it.
FACTS = {"datainf": {"damped": True, "iterative": False}}
ESTIMATORS: Registry[Estimator] = Registry.of(
    __package__, "estimator", "datainf grad_dot cosine exact cg lissa ekfac", facts=FACTS
)


def is_damped(name: str) -> bool:
    """Whether what an estimator gives depends on the damping."""
    damped: bool = ESTIMATORS.fact(name, "damped", lambda entry: entry.damped)
    return damped


def is_iterative(name: str) -> bool:
    """Whether it depends on the tolerance and on the most iterations."""
    iterative: bool = ESTIMATORS.fact(name, "iterative", lambda entry: entry.iterative)
    return iterative


def register_estimator(
    name: str, estimator: Callable[[Block, SolveOptions], Solution] | Estimator
) -> None:
    """Give an estimator a name: `score(..., estimator=name)` then uses it.

    Args:
        name: not taken yet.
        estimator: a function of a block and the options, or that with what else it can do.

    Raises:
        InputError: the name is taken.
    """
    from layerif.influence.estimators.base import Estimator

    known = estimator if isinstance(estimator, Estimator) else Estimator(estimator)
    ESTIMATORS.register(name, known)
