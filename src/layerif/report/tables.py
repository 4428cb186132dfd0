"""Tables for the terminal, from artifacts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from layerif.artifacts import Allocation, LayerScores, Measurement, Results
from layerif.budgets import Aggregation

BAR = 24


def scores_table(scores: LayerScores, aggregate: Aggregation = "positive") -> Table:
    """One row a layer: its score, and a bar from the lowest to the highest."""
    values = scores.aggregate(aggregate)
    helpful = (scores.influence > 0).mean(1)
    table = _table(
        f"Influence per decoder layer: {scores.model.name}, "
        f"{(scores.record.task or {}).get('name', 'examples in memory')}"
    )
    for column in ("layer", aggregate, "helpful samples"):
        table.add_column(column, justify="right")
    table.add_column("")
    for layer, value in enumerate(values):
        table.add_row(
            str(layer), f"{value:.4g}", f"{helpful[layer]:.0%}", _bar(value, values.max())
        )
    return table


def allocation_table(plan: Allocation) -> Table:
    """One row a layer: its share of the budget."""
    experts = plan.kind == "experts"
    total = f"{plan.realised_total:.0f} in all" if experts else f"{plan.realised_total:.2%} overall"
    table = _table(f"{'LoRA experts' if experts else 'Sparsity'} per decoder layer: {total}")
    table.add_column("layer", justify="right")
    table.add_column(plan.kind, justify="right")
    table.add_column("")
    for layer, value in enumerate(plan.allocation):
        shown = f"{value:.0f}" if experts else f"{value:.2%}"
        table.add_row(str(layer), shown, _bar(value, max(plan.allocation)))
    return table


def results_table(results: Mapping[str, Results], title: str) -> Table:
    """Models side by side, one row each, one column a measurement."""
    table = _table(title)
    table.add_column("")
    table.add_column("sparsity", justify="right")
    first = next(iter(results.values()))
    for measurement in first.measurements:
        unit = "perplexity ↓" if measurement.metric == "perplexity" else "accuracy ↑"
        table.add_column(f"{measurement.name}\n{unit}", justify="right")
    if any(_has_loss(m) for m in first.measurements):
        table.add_column("answer loss\nnats/token ↓", justify="right")
    for name, result in results.items():
        losses = [m.details["completion_loss"] for m in result.measurements if _has_loss(m)]
        table.add_row(
            name,
            f"{result.sparsity:.2%}",
            *map(_figure, result.measurements),
            *([f"{np.mean(losses):.3f}"] if losses else []),
        )
    return table


def caveat_lines(results: Mapping[str, Results]) -> Sequence[str]:
    """What a reader must know beside the figures."""
    first = next(iter(results.values()))
    lines = [
        f"Measured on {m.name}: {m.count:,} {_counted(m)}."
        + (f" Chance is {m.details['chance']:.0%}." if "chance" in m.details else "")
        for m in first.measurements
    ]
    if first.model.caveat:
        lines.append(f"{first.model.name} is {first.model.caveat}, not the published checkpoint.")
    return lines


def _counted(measurement: Measurement) -> str:
    return "rows, ± half a 95 % interval" if measurement.metric == "accuracy" else "tokens"


def _has_loss(measurement: Measurement) -> bool:
    return "completion_loss" in measurement.details


def _figure(measurement: Measurement) -> str:
    if measurement.metric == "perplexity":
        return f"{measurement.value:.2f}"
    if measurement.low is None or measurement.high is None:
        return f"{measurement.value:.1%}"
    return f"{measurement.value:.1%} ± {(measurement.high - measurement.low) / 2:.1%}"


def _bar(value: float, highest: float) -> str:
    share = value / highest if highest > 0 else 0.0
    return "█" * round(BAR * max(share, 0.0))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold")
