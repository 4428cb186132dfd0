"""Sparsity: the fraction of zeros in a layer's projections, its mean by weight exact."""

from __future__ import annotations

from layerif.plans.kinds.base import Map, PlanKind
from layerif.plans.maps import sparsity
from layerif.plans.maps.cautions import emptied
from layerif.plans.options import SparsityMapOptions

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
        "layerif": Map(sparsity.layerif_map),
        "owl": Map(sparsity.owl_map),
        "dlp": Map(sparsity.dlp_map),
        "uniform": Map(
            lambda _scores, total, sizes, *, s_max=1.0: sparsity.uniform_sparsity(
                total, sizes, s_max=s_max
            ),
            scored=False,
            recorded=False,
        ),
    },
    fit=lambda levels, total, sizes: sparsity.project_to_total(levels, sizes, total),
    weighted=True,
    by_projection=True,
    caution=emptied,
)
