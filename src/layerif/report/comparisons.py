"""Models compared: differences in plain language, and a table of plans trained by several seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from layerif.artifacts import Comparison
from layerif.artifacts.results import SIGNIFICANCE
from layerif.report.tables import plain_table, titled

_WORDS = {"accuracy": "accuracy", "perplexity": "perplexity", "completion_loss": "answer loss"}
_UNITS = {"accuracy": "accuracy ↑", "completion_loss": "answer loss ↓"}


def comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """One line a comparison: both figures, the difference, its interval, p, and what that says.

    p is the adjusted one, since that is what decides; a last line says so where there are several.
    """
    lines = [_line(comparison) for comparison in comparisons]
    if len(lines) > 1:
        lines.append(
            f"Intervals are 95 % of each difference; p is adjusted for {len(lines)} comparisons "
            "(Holm)."
        )
    seeds = min((each.seeds for each in comparisons if each.seeds is not None), default=None)
    # Fewer than this many signs cannot come out below 0.05, were they all alike.
    needed = 2 + math.floor(math.log2(max(1, len(comparisons)) / SIGNIFICANCE))
    if seeds is not None and seeds < needed:
        lines.append(
            f"{seeds} seed{'s' if seeds > 1 else ''} cannot show a difference between plans: p is "
            f"at least {2.0 ** (1 - seeds):.2g} before it is adjusted. {needed} seeds can."
        )
    return lines


def _line(found: Comparison) -> str:
    form, scale, unit = (".2f" if found.metric == "perplexity" else ".3f"), 1, ""
    shown = form
    if found.metric == "accuracy":
        shown, form, scale, unit = ".1%", ".1f", 100, " points"
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f" [{scale * found.low:+{form}}, {scale * found.high:+{form}}]"
    p = "p < 0.001" if found.p_holm < 0.001 else f"p = {found.p_holm:.2g}"
    better = (found.difference > 0) == (found.metric == "accuracy")
    verdict = "inside the noise" if found.inside_noise else "better" if better else "worse"
    return (
        f"{titled(found.name, found.scoring)} {_WORDS[found.metric]}: {found.model} "
        f"{found.value:{shown}} against {found.baseline} {found.baseline_value:{shown}}: "
        f"{scale * found.difference:+{form}}{unit}{interval}, {p}: {verdict}"
    )


def seeds_table(
    figures: Mapping[str, Sequence[tuple[str, str, Sequence[float]]]],
    parameters: Mapping[str, int],
    title: str,
) -> Table:
    """Plans side by side, one row each: mean over seeds, ± the standard deviation among them.

    Args:
        figures: of each plan (task, metric, one value a seed).
        parameters: trainable ones of each plan.
    """
    measured = [f">{name}\n{_UNITS[metric]}" for name, metric, _ in next(iter(figures.values()))]
    table = plain_table(title, "", ">trainable\nparameters", *measured)
    for plan, own in figures.items():
        row = [_over_seeds(metric, np.asarray(values)) for _, metric, values in own]
        table.add_row(plan, f"{parameters[plan]:,}", *row)
    return table


def _over_seeds(metric: str, values: np.ndarray) -> str:
    form = ".1%" if metric == "accuracy" else ".3f"
    spread = f" ± {values.std(ddof=1):{form}}" if len(values) > 1 else ""
    return f"{values.mean():{form}}{spread}"
