"""Experts: the number of LoRA experts in a layer, at least one, their sum exact."""

from __future__ import annotations

from math import inf

from layerif.plans.kinds.base import Map, PlanKind
from layerif.plans.maps import counts
from layerif.plans.options import CountsMapOptions

EXPERTS = PlanKind(
    name="experts",
    label="LoRA experts",
    level="{} experts",
    span="{} to {} experts",
    legal="a whole number from 1 up",
    form="{:.0f}",
    low=1,
    high=inf,
    options=CountsMapOptions,
    maps={
        "power": Map(counts.power_map),
        "mola": Map(
            lambda scores, total, *, shape=counts.MOLA_SHAPE: counts.mola_map(
                len(scores), total, shape
            ),
            scored=False,
        ),
        "uniform": Map(
            lambda scores, total: counts.uniform_counts(len(scores), total), scored=False
        ),
    },
    fit=lambda levels, total, _sizes: counts.apportion(levels, total),
    whole=True,
    ranks=counts.equal_ranks,
)
