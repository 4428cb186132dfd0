"""Kinds of plan: what is given out, layer by layer. One file a kind; a user registers others."""

from layerif.core.registry import Registry
from layerif.plans.kinds.base import Map, PlanKind
from layerif.plans.kinds.experts import EXPERTS
from layerif.plans.kinds.ranks import RANKS
from layerif.plans.kinds.sparsity import SPARSITY

kinds: Registry[PlanKind] = Registry("kind of plan")
for kind in (SPARSITY, EXPERTS, RANKS):
    kinds.register(kind.name, kind)

__all__ = ["Map", "PlanKind", "kinds"]
