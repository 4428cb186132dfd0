"""Depth: which layers are kept, 1 or 0 for each; their sum is the number of layers left."""

from __future__ import annotations

from layerif.plans.kinds.base import Map, PlanKind
from layerif.plans.maps import depth
from layerif.plans.options import DepthMapOptions

# A plan by sublayers gives each of them 1 or 0; a layer's number is then the share of its weights
# that is kept, and the sum counts a layer in part.
DEPTH = PlanKind(
    name="depth",
    label="layers kept",
    level="{}",
    span="{} to {}",
    legal="1, which keeps it, or 0, which drops it",
    form="{:.4g}",
    low=0,
    high=1,
    options=DepthMapOptions,
    maps={
        "highest": Map(depth.highest_map),
        "uniform": Map(lambda scores, total: depth.spaced(len(scores), total), scored=False),
        "last": Map(lambda scores, total: depth.last(len(scores), total), scored=False),
    },
    fit=lambda levels, total, _sizes: depth.highest_map(levels, total, on_constant="uniform"),
    whole=True,
    by_projection=True,
    every_layer=True,
)
