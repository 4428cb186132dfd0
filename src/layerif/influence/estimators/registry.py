"""Estimators by name: those of this package, and any that a user registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerif.core.registry import Registry

if TYPE_CHECKING:
    from layerif.influence.estimators.estimator import Estimator, Solve

ESTIMATORS: Registry[Estimator] = Registry.of(
    __package__, "estimator", "datainf grad_dot cosine exact cg lissa ekfac"
)


def register_estimator(name: str, estimator: Solve | Estimator) -> None:
    """Give an estimator a name: `score(..., estimator=name)` then uses it.

    Args:
        name: not taken yet.
        estimator: a function of a block and the options, or that with what else it can do.

    Raises:
        InputError: the name is taken.
    """
    from layerif.influence.estimators.estimator import Estimator

    known = estimator if isinstance(estimator, Estimator) else Estimator(estimator)
    ESTIMATORS.register(name, known)
