"""Experts: the number of LoRA experts in a layer, at least one, their sum exact."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from layerif.plans.kinds.base import Map, PlanKind
from layerif.plans.maps import MOLA_SHAPE, apportion, equal_ranks, mola_map, power_map
from layerif.plans.maps.aggregation import FloatArray
from layerif.plans.maps.counts import IntArray
from layerif.plans.maps.experts import uniform_map
from layerif.plans.options import CountsMapOptions


def _mola(scores: FloatArray, total: int, *, shape: Sequence[float] = MOLA_SHAPE) -> IntArray:
    return mola_map(len(scores), total, shape)


def _uniform(scores: FloatArray, total: int) -> IntArray:
    return uniform_map(len(scores), total)


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
        "power": Map(power_map),
        "mola": Map(_mola, scored=False),
        "uniform": Map(_uniform, scored=False),
    },
    fit=lambda levels, total, _sizes: apportion(levels, total),
    whole=True,
    ranks=equal_ranks,
)
