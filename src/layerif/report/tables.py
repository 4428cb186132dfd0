"""Tables for the terminal, from artifacts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from layerif.artifacts import Allocation, LayerScores, Manifest, Measurement, Results
from layerif.choices import Aggregation

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


def manifest_table(manifest: Manifest) -> Table:
    """One row a layer: sparsity asked for, and zeros counted."""
    table = _table(
        f"{manifest.model.name} pruned by {manifest.method}: {manifest.sparsity:.2%} zeros"
    )
    for column in ("layer", "asked", "zeros"):
        table.add_column(column, justify="right")
    table.add_column("")
    for layer, asked in enumerate(manifest.plan.allocation):
        modules = [m for m in manifest.modules if m.module.startswith(f"layers.{layer}.")]
        share = sum(m.zeros for m in modules) / sum(m.numel for m in modules)
        table.add_row(str(layer), f"{asked:.2%}", f"{share:.2%}", _bar(share, 1))
    return table


def results_table(results: Mapping[str, Results], title: str) -> Table:
    """Models side by side, one row each, one column a measurement."""
    table = _table(title)
    table.add_column("")
    table.add_column("sparsity", justify="right")
    first = next(iter(results.values()))
    for measurement in first.measurements:
        unit = "perplexity ↓" if measurement.metric == "perplexity" else "accuracy ↑"
        if measurement.scoring == "generation":
            unit = f"generated {unit}"
        name = escape(measurement.name)
        table.add_column(f"{name}\n{unit}", justify="right")
        if _answer_loss(measurement) is not None:
            table.add_column(f"{name}\nanswer loss ↓", justify="right")
    for name, result in results.items():
        figures = [figure for m in result.measurements for figure in _figures(m)]
        table.add_row(escape(name), f"{result.sparsity:.2%}", *figures)
    return table


def caveat_lines(results: Mapping[str, Results]) -> Sequence[str]:
    """What a reader must know beside the figures."""
    first = next(iter(results.values()))
    lines = [
        f"Measured on {m.name}: {m.count:,} {_counted(m)}."
        + (f" Chance is {m.details['chance']:.0%}." if "chance" in m.details else "")
        for m in first.measurements
    ]
    for name, result in results.items():
        of_model = f" of {name}" if len(results) > 1 else ""
        lines += [
            f"{m.details['parse_failures']} of {m.count:,} answers{of_model} on {m.name} could not "
            f"be read, and count as wrong{_of_the_others(m)}."
            for m in result.measurements
            if m.details.get("parse_failures")
        ]
    if first.model.caveat:
        lines.append(f"{first.model.name} is {first.model.caveat}, not the published checkpoint.")
    return lines


def _counted(measurement: Measurement) -> str:
    counted = "rows" if measurement.metric == "accuracy" else "tokens"
    return counted if measurement.low is None else f"{counted}, ± half a 95 % interval"


def _figures(measurement: Measurement) -> list[str]:
    accuracy = measurement.metric == "accuracy"
    form = "{:.1%}" if accuracy else "{:.2f}"
    shown = form.format(measurement.value)
    if measurement.low is not None and measurement.high is not None:
        shown += " ± " + form.format((measurement.high - measurement.low) / 2)
    loss = _answer_loss(measurement)
    return [shown] if loss is None else [shown, f"{loss:.3f}"]


def _answer_loss(measurement: Measurement) -> float | None:
    """Mean loss of the right answer, where answers were chosen by likelihood."""
    loss: float | None = measurement.details.get("completion_loss")
    return loss if measurement.metric == "accuracy" else None


def _of_the_others(measurement: Measurement) -> str:
    """How many of the answers that could be read are right."""
    share = measurement.details.get("accuracy_of_parsed")
    return "" if share is None else f"; of the others {share:.1%} are right"


def _bar(value: float, highest: float) -> str:
    share = value / highest if highest > 0 else 0.0
    return "█" * round(BAR * max(share, 0.0))


def _table(title: str) -> Table:
    # Names may hold brackets, which rich would read as its markup.
    return Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, title_style="bold")
