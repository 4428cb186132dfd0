"""Bits: of each weight of a projection, scales aside; their mean by weight is within the total."""

from __future__ import annotations

from layerif.plans.kinds.base import Map, PlanKind
from layerif.plans.maps import bits
from layerif.plans.options import BitsMapOptions

BITS = PlanKind(
    name="bits",
    label="bits",
    level="{} bits",
    span="{} to {} bits",
    legal="a whole number from 2 to 8, or 16, which leaves it as it is",
    form="{:.2f}",
    low=2,
    high=16,
    options=BitsMapOptions,
    maps={
        "linear": Map(bits.linear_map),
        "uniform": Map(
            lambda scores, total, sizes: bits.nearest_bits([total] * len(scores), total, sizes),
            scored=False,
        ),
    },
    fit=bits.nearest_bits,
    whole=True,
    allowed=bits.LEVELS,
    weighted=True,
    at_most=True,
    by_projection=True,
)
