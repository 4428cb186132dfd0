"""Pictures of scores and plans, one bar a decoder layer, as PNG and SVG."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerif.artifacts import LayerScores, MetricScores, Plan
from layerif.core.choices import Aggregation
from layerif.core.files import Kind, new_file
from layerif.core.progress import note
from layerif.core.terminal import harmless
from layerif.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In every picture, which tells it from those of others.
FORMAT = "layerif.picture"
INK, ACCENT = "#24292f", "#2f6f9f"
# Letters of a line that fit above the bars.
LONGEST_LINE = 90


def leave_picture(draw: Callable[..., object], *what: Any, beside: Path, **options: Any) -> None:
    """Draw a picture beside a result that is written; where it cannot be, a note says why.

    Args:
        draw: such as `plot_scores`; called with `what`, a stem and the options.
        beside: the result's file: that of `plan.json` is `plan.png` and `plan.svg`.
    """
    stem = beside.with_name(beside.name.removesuffix(".json") or beside.name)
    try:
        draw(*what, stem, **options)
    except InputError as error:
        note(f"no picture: {error}")


def plot_scores(
    scores: LayerScores, stem: str | Path, *, aggregate: Aggregation = "positive"
) -> list[Path]:
    """Draw the score of each layer; returns the PNG and the SVG written to `stem`.png, .svg."""
    record = scores.record
    made = f"{scores.model.name}, {task_name(record.task)}, {record.train_samples} training samples"
    figure, axes = _figure(f"Influence per decoder layer ({aggregate})", made)
    _powered_bars(axes, scores.aggregate(aggregate), "summed influence")
    return save_figure(figure, Path(stem))


def plot_metric(scores: MetricScores, stem: str | Path) -> list[Path]:
    """Draw a metric's score of each layer; returns the PNG and the SVG written."""
    figure, axes = _figure(f"{scores.metric} per decoder layer", scores.model.name)
    _powered_bars(axes, np.asarray(scores.scores), "score", least=3)
    return save_figure(figure, Path(stem))


def plot_plan(plan: Plan, stem: str | Path) -> list[Path]:
    """Draw a plan beside the uniform one of the same total, written to `stem`.png and .svg.

    Sparsities lie close together, so their bars start at the uniform plan's line; experts
    and ranks are counted from zero.
    """
    rules, label, how = plan.rules, plan.rules.label, plan.how.get("map", "given")
    title = f"{label[0].upper()}{label[1:]} per decoder layer ({how})"
    figure, axes = _figure(title, plan.model.name if plan.model else "any model")
    values = np.asarray(plan.allocation, dtype=float)
    mean = plan.realised_total / (1 if rules.weighted else len(values))
    _bars(axes, values, start=mean if rules.weighted else 0.0)
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


def task_name(task: Mapping[str, Any] | None) -> str:
    """What the record of a task calls it."""
    return str((task or {}).get("name", "examples in memory"))


def _figure(title: str, subtitle: str) -> tuple[Figure, Axes]:
    # The object interface, not pyplot: no global state and no display is touched. Names of others
    # are no formulas, whatever dollars they hold.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(one_line(title), loc="left", fontsize=11, color=INK, pad=18, parse_math=False)
    line = axes.text(0, 1.03, one_line(subtitle), transform=axes.transAxes, parse_math=False)
    # A wide one must not make the axes narrower.
    line.set(fontsize=8, color="#57606a", in_layout=False)
    axes.set_xlabel("decoder layer")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def one_line(text: str) -> str:
    """Text of others on one line; of a long one the end."""
    text = harmless(text).replace("\n", " ")
    return text if len(text) <= LONGEST_LINE else f"\u2026{text[1 - LONGEST_LINE :]}"


def _powered_bars(axes: Axes, values: np.ndarray, label: str, *, least: int = 1) -> None:
    """Bars of numbers of any size.

    One power of ten for the whole axis, in its label: a mark at its top would hit the title.

    Args:
        least: the first power, up or down, that is taken out.
    """
    # 10^-308 is the least that a division by it leaves finite.
    power = max(int(np.floor(np.log10(np.abs(values).max()))), -307) if values.any() else 0
    power = power if abs(power) >= least else 0
    _bars(axes, values / 10.0**power)
    axes.set_ylabel(label + (f" / $10^{{{power}}}$" if power else ""))


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
        with (
            new_file(path, Kind(FORMAT)) as part,
            rc_context({"svg.hashsalt": "layerif"}),
            warnings.catch_warnings(),
        ):
            # A name may hold characters that the font has not; they are drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph")
            metadata = {"Description": f"{FORMAT}/1", **own}
            figure.savefig(part, format=suffix, dpi=160, metadata=metadata)
        written.append(path)
    return written
