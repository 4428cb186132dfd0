"""Scores beside what a change of each layer really does: a table, and a scatter plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from rich.table import Table

from layerif.artifacts import Agreement, GroundTruth
from layerif.core.choices import TruthKind
from layerif.report.plots import ACCENT, INK, one_line, save_figure
from layerif.report.tables import plain_table

PANELS = 6
TITLES: dict[TruthKind, str] = {
    "isolated": "pruned alone",
    "operating_point": "at the operating point",
    "capacity": "in one layer alone",
}
COST, GAIN = "the cost of pruning a layer", "the fall of the loss by adapters"


def agreement_table(found: Mapping[TruthKind, Sequence[Agreement]]) -> Table:
    """One row a score, one part a ground truth: beside each other they are wider than a terminal.

    Args:
        found: of each kind of ground truth the agreements, the strongest correlation first.
    """
    both = [words for words in (COST, GAIN) if words in {_measured(kind) for kind in found}]
    title = f"Rank correlation of scores with {', and with '.join(both)}"
    table = plain_table(title, "score", ">Spearman, 95 %", ">p", "orientation")
    for kind, rows in found.items():
        table.add_row(TITLES[kind], style="italic")
        for each in rows:
            if each.spearman is None:
                cells = ["constant", "", ""]
            else:
                cells = [
                    f"{each.spearman:+.2f} [{each.low:+.2f}, {each.high:+.2f}]",
                    "" if each.p is None else f"{each.p:.2g}",
                    each.orientation or "neither",
                ]
            table.add_row(f"  {each.name}", *cells)
        table.add_section()
    return table


def plot_agreement(
    scores: Mapping[str, ArrayLike], found: Sequence[Agreement], truth: GroundTruth, stem: Path
) -> list[Path]:
    """Score against cost or gain, a point a layer, for the scores that agree most; PNG and SVG."""
    from matplotlib.figure import Figure

    shown = [each for each in found if each.spearman is not None][:PANELS]
    columns = min(3, max(1, len(shown)))
    rows = -(-len(shown) // columns) or 1
    figure = Figure(figsize=(max(4.0, 2.6 * columns), 2.4 * rows + 0.6), layout="constrained")
    what = _measured(truth.kind).removeprefix("the ").capitalize()
    how = "" if truth.sparsity is None else f", {truth.sparsity:.0%} sparsity"
    figure.suptitle(
        f"{what}, {TITLES[truth.kind]}\n{one_line(truth.model.name)}{how}",
        fontsize=10,
        color=INK,
        parse_math=False,
    )
    costs = truth.values
    for place, each in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        values = np.asarray(scores[each.name], dtype=float)
        axes.scatter(values, costs, s=12, color=ACCENT)
        title = one_line(f"{each.name}: {each.spearman:+.2f}")
        axes.set_title(title, fontsize=8, loc="left", color=INK, parse_math=False)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        for layer in {0, int(np.argmax(costs)), len(costs) - 1}:
            axes.annotate(f"{layer}", (values[layer], costs[layer]), fontsize=7, color=INK)
        if place % columns == 0:
            axes.set_ylabel("nats a token", fontsize=8)
    return save_figure(figure, stem)


def _measured(kind: TruthKind) -> str:
    return GAIN if kind == "capacity" else COST
