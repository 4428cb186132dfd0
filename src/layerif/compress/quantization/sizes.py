"""What a plan of bits takes on disk."""

from __future__ import annotations

from layerif.artifacts import Plan
from layerif.model.layers import DecoderLayers
from layerif.plans.maps.stored import Grouping, stored_bytes


def plan_bytes(plan: Plan, layers: DecoderLayers, grid: Grouping) -> int:
    """Bytes of all projections, scales and zero points counted.

    Args:
        plan: of bits, for these layers.
        layers: of the model; a skeleton's will do.
        grid: how weights share their scales.
    """
    return sum(
        stored_bytes(p.out_features, p.in_features, int(plan.level_of(p.key)), grid)
        for p in layers.projections
    )
