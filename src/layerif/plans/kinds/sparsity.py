"""Sparsity: the fraction of zeros in a layer's projections, its mean by weight exact."""

from __future__ import annotations

from layerif.plans.kinds.base import Map, PlanKind
from layerif.plans.maps import dlp_map, emptied, layerif_map, owl_map, project_to_total
from layerif.plans.maps.aggregation import FloatArray
from layerif.plans.maps.sparsity import uniform_map
from layerif.plans.options import SparsityMapOptions


def _uniform(
    _scores: FloatArray, total: float, sizes: FloatArray, *, s_max: float = 1.0
) -> FloatArray:
    return uniform_map(total, sizes, s_max=s_max)


SPARSITY = PlanKind(
    name="sparsity",
    label="sparsity",
    level="sparsity {}",
    span="sparsities of {:.0%} to {:.0%}",
    legal="a number from 0 to 1",
    form="{:.2%}",
    low=0,
    high=1,
    options=SparsityMapOptions,
    maps={
        "layerif": Map(layerif_map),
        "owl": Map(owl_map),
        "dlp": Map(dlp_map),
        "uniform": Map(_uniform, scored=False, recorded=False),
    },
    fit=lambda levels, total, sizes: project_to_total(levels, sizes, total),
    weighted=True,
    by_projection=True,
    caution=emptied,
)
