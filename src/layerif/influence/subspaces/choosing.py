"""A subspace from plain values, as commands and recipes have them, and what cannot go together."""

from __future__ import annotations

from typing import Any

from layerif.core.choices import Keep, SubspaceName, check_choice
from layerif.errors import InputError
from layerif.influence.estimators import find
from layerif.influence.subspaces.adapter import AdapterSubspace
from layerif.influence.subspaces.base import Subspace
from layerif.influence.subspaces.full import FullWeights
from layerif.influence.subspaces.lora import FreshLora
from layerif.influence.subspaces.projected import TwoSided


def subspace_of(
    subspace: SubspaceName | Subspace,
    model: Any,
    *,
    rank: int,
    alpha: float,
    size: int,
    seed: int,
    adapter: str,
) -> Subspace:
    """The subspace of a name, or the one that is given.

    Raises:
        InputError: no such name, or a number out of its range.
    """
    if not isinstance(subspace, str):
        return subspace
    check_choice(subspace, SubspaceName, "subspace")
    if subspace == "fresh_lora":
        return FreshLora(rank, alpha, seed)
    if subspace == "two_sided":
        return TwoSided(size, seed)
    return FullWeights() if subspace == "full" else AdapterSubspace(model, adapter)


def check_combination(
    subspace: SubspaceName,
    *,
    rank: int,
    alpha: float,
    size: int,
    estimator: str,
    keep: Keep,
    memory: float | None,
    adapter: object,
    warmup_steps: int,
) -> None:
    """Refuse what cannot be scored, before a model is opened.

    Args:
        adapter: what names the folder of an adapter; None for none.
        warmup_steps: of an adapter that is fine-tuned before.

    Raises:
        InputError: values that do not go together, or out of their range.
    """
    subspace_of(subspace, None, rank=rank, alpha=alpha, size=size, seed=0, adapter="")
    FreshLora(rank, alpha)
    TwoSided(size)
    check_choice(keep, Keep, "place to keep gradients")
    if memory is not None and not memory > 0:
        raise InputError(f"memory must be a positive number of GB, not {memory}")
    if warmup_steps < 0:
        raise InputError(f"the warm-up must have at least 0 steps, not {warmup_steps}")
    if subspace == "adapter" and (adapter is None) == (warmup_steps == 0):
        raise InputError(
            "the subspace adapter needs an adapter: give its folder (--adapter DIR), or have a "
            "fresh one fine-tuned first (--warmup-steps N), and not both"
        )
    if subspace != "adapter" and (warmup_steps or adapter is not None):
        raise InputError(
            "an adapter, given or warmed up, is for the subspace adapter, and the subspace is "
            f"{subspace}; choose --subspace adapter, or leave the adapter out"
        )
    kept = find(estimator).passes is None
    if subspace == "full" and (kept or keep in ("memory", "disk")):
        raise InputError(
            "the gradients of full weights are never formed, so they cannot be kept"
            + (f", and the estimator {estimator} has them kept" if kept else "")
            + "; use datainf, grad_dot, cosine or ekfac with --keep auto, or another --subspace"
        )
    if keep == "passes" and kept:
        raise InputError(
            f"the estimator {estimator} reads gradients more often than passes can be afforded; "
            "use datainf, grad_dot, cosine or ekfac, or another --keep"
        )
