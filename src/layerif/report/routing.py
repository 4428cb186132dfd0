"""A picture of how routers use their experts: a map of layers and experts for each projection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layerif.artifacts import RouterLoad, RoutingUse
from layerif.report.plots import INK, one_line, save_figure

COLUMNS = 4
# What a load is to the even one: the colours end here, for one busy expert hides the others else.
MOST = 2.0


def plot_routing(use: RoutingUse, stem: str | Path) -> list[Path]:
    """Draw the load of each expert; returns the PNG and the SVG written to `stem`.png, .svg.

    A panel for each projection of a layer, a column for each decoder layer and in it the experts,
    the busiest at the bottom: their numbers mean nothing, and sorted the columns can be compared.
    The colour is the load times the number of experts, 1 where all get the same. Experts that got
    no token are crossed out, and where there is no router the ground shows.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(_name(router) for router in use.routers))
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    layers, most = use.model.layers, max(len(router.counts) for router in use.routers)
    width, height = 1.2 + layers * 0.055, 1.0 + most * 0.09
    figure = Figure(figsize=(columns * width + 1.0, rows * height + 0.6), layout="constrained")
    title = one_line(f"Load of LoRA experts: {use.model.name}, adapter {use.adapter}")
    figure.suptitle(title, fontsize=10, color=INK, parse_math=False)
    panels = []
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        panels.append(axes)
        found = even_loads([r for r in use.routers if _name(r) == name], layers, most)
        # Rastered as cells and not as an image: an image is blurred by some readers of SVG.
        image = axes.pcolormesh(
            np.arange(layers), np.arange(most), found, cmap="RdBu_r", vmin=0, vmax=MOST
        )
        dead = np.argwhere(found == 0)
        axes.plot(dead[:, 1], dead[:, 0], "x", color=INK, markersize=3, markeredgewidth=0.7)
        axes.set_title(name, fontsize=8, loc="left", color=INK)
        axes.tick_params(labelsize=6)
        axes.set_facecolor("#d0d7de")
        axes.spines[["top", "right"]].set_visible(False)
        if place % columns == 0:
            axes.set_ylabel("experts, busiest first", fontsize=7)
        if place + columns >= len(names):
            axes.set_xlabel("decoder layer", fontsize=7)
    bar = figure.colorbar(image, ax=panels, shrink=0.8, extend="max")
    bar.set_label("load × experts", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return save_figure(figure, Path(stem))


def even_loads(
    routers: Sequence[RouterLoad], layers: int, experts: int
) -> np.ma.MaskedArray[tuple[int, ...], np.dtype[np.float64]]:
    """(experts, layers) loads times the number of experts, the largest first; masked elsewhere.

    Args:
        routers: of one projection, at most one for a layer.
        layers: of the model.
        experts: the most that a router has.
    """
    loads: NDArray[np.float64] = np.full((experts, layers), np.nan)
    for router in routers:
        own = sorted(router.load, reverse=True)
        loads[: len(own), router.layer] = np.array(own) * len(own)
    return np.ma.masked_invalid(loads)


def _name(router: RouterLoad) -> str:
    """The projection's path in its layer."""
    return router.module.removeprefix(f"layers.{router.layer}.")
