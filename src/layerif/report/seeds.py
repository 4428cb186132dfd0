"""The table of models that were trained with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from layerif.report.tables import plain_table

UNITS = {"accuracy": "accuracy ↑", "completion_loss": "answer loss ↓"}


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
    measured = [f">{name}\n{UNITS[metric]}" for name, metric, _ in next(iter(figures.values()))]
    table = plain_table(title, "", ">trainable\nparameters", *measured)
    for plan, own in figures.items():
        row = [_shown(metric, np.asarray(values)) for _, metric, values in own]
        table.add_row(plan, f"{parameters[plan]:,}", *row)
    return table


def _shown(metric: str, values: np.ndarray) -> str:
    form = "{:.1%}" if metric == "accuracy" else "{:.3f}"
    shown = form.format(values.mean())
    return shown + (f" ± {form.format(values.std(ddof=1))}" if len(values) > 1 else "")
