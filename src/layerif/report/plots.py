"""Pictures of scores and plans, one bar a decoder layer, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from layerif.artifacts import Allocation, LayerScores
from layerif.choices import Aggregation
from layerif.files import Kind, new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In every picture, which tells it from those of others.
FORMAT = "layerif.picture"
INK, ACCENT = "#24292f", "#2f6f9f"
LABELS = {"sparsity": "sparsity", "experts": "LoRA experts", "ranks": "LoRA rank"}


def plot_scores(
    scores: LayerScores, stem: str | Path, *, aggregate: Aggregation = "positive"
) -> list[Path]:
    """Draw the score of each layer; returns the PNG and the SVG written to `stem`.png, .svg."""
    figure, axes = _figure(f"Influence per decoder layer ({aggregate})", _model_line(scores))
    values = scores.aggregate(aggregate)
    # One power of ten for the whole axis, in its label: a mark at its top would hit the title.
    power = int(np.floor(np.log10(np.abs(values).max()))) if values.any() else 0
    _bars(axes, values / 10.0**power)
    axes.set_ylabel("summed influence" + (f" / $10^{{{power}}}$" if power else ""))
    return save_figure(figure, Path(stem))


def plot_allocation(plan: Allocation, stem: str | Path) -> list[Path]:
    """Draw a plan beside the uniform one of the same total, written to `stem`.png and .svg.

    Sparsities lie close together, so their bars start at the uniform plan's line; experts
    and ranks are counted from zero.
    """
    name = plan.model.name if plan.model else "any model"
    label = LABELS[plan.kind]
    how = plan.how.get("map", "given")
    figure, axes = _figure(f"{label[0].upper()}{label[1:]} per decoder layer ({how})", name)
    values = np.asarray(plan.allocation, dtype=float)
    mean = plan.realised_total / (len(values) if plan.whole else 1)
    _bars(axes, values, start=0.0 if plan.whole else mean)
    axes.axhline(mean, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"uniform {mean:.3g}",
        xy=(1, mean),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK,
    )
    axes.set_ylabel(label)
    return save_figure(figure, Path(stem))


def _model_line(scores: LayerScores) -> str:
    record = scores.record
    task = (record.task or {}).get("name", "examples in memory")
    return f"{scores.model.name}, {task}, {record.train_samples} training samples"


def _figure(title: str, subtitle: str) -> tuple[Figure, Axes]:
    # The object interface, not pyplot: no global state and no display is touched.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=18)
    axes.text(0, 1.03, subtitle, transform=axes.transAxes, fontsize=8, color="#57606a")
    axes.set_xlabel("decoder layer")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _bars(axes: Axes, values: Sequence[float] | np.ndarray, *, start: float = 0.0) -> None:
    from matplotlib.ticker import MaxNLocator

    heights = np.asarray(values) - start
    axes.bar(np.arange(len(values)), heights, bottom=start, width=0.78, color=ACCENT)
    axes.set_xlim(-0.7, len(values) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure to `stem`.png and .svg, in place of pictures that layerif drew.

    Raises:
        InputError: they cannot be written, or are files of another kind.
    """
    from matplotlib import rc_context

    written = []
    # No date and no random names inside, so that the same artifact gives the same file.
    for suffix, own in (("png", {}), ("svg", {"Date": None})):
        path = stem.with_name(f"{stem.name}.{suffix}")
        with new_file(path, Kind(FORMAT)) as part, rc_context({"svg.hashsalt": "layerif"}):
            metadata = {"Description": f"{FORMAT}/1", **own}
            figure.savefig(part, format=suffix, dpi=160, metadata=metadata)
        written.append(path)
    return written
