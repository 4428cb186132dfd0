"""Tables for the terminal, from artifacts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement as Width
from rich.table import Table
from rich.text import Text

from layerif.artifacts import (
    DroppedLayers,
    Finetuning,
    LayerScores,
    Manifest,
    Measurement,
    MetricScores,
    Plan,
    PrunedModule,
    QuantizedManifest,
    QuantizedModule,
    Results,
)
from layerif.core.choices import Aggregation
from layerif.core.terminal import harmless
from layerif.report.plots import task_name

BAR, LEAST = 24, 4  # characters of a bar, and what tables may shorten it to
SAME_TOTAL = 5e-7
SIDE_BY_SIDE = 4  # measurements that fit beside each other into an ordinary terminal
STEPS_SHOWN = 12  # of a fine-tuning run
METHODS = {"lora": "LoRA", "lora_moe": "a mixture of LoRA experts"}


def scores_table(scores: LayerScores, aggregate: Aggregation = "positive") -> Table:
    """One row a layer: the paper's three scores, and a bar of one of them up to the highest.

    Args:
        scores: the scores.
        aggregate: what the bar is of; `negative` has a column beside the three.
    """
    shown = dict.fromkeys(("all", "positive", "top", aggregate))
    columns = {how: scores.aggregate(how) for how in shown}
    values = columns[aggregate]
    helpful = (scores.influence > 0).mean(1)
    table = plain_table(
        f"Influence per decoder layer: {scores.model.name}, {task_name(scores.record.task)}",
        *(">layer", *(f">{column}" for column in columns), ">helpful\nsamples", aggregate),
    )
    for layer, value in enumerate(values):
        figures = [f"{column[layer]:.4g}" for column in columns.values()]
        table.add_row(str(layer), *figures, f"{helpful[layer]:.0%}", _bar(value, values.max()))
    return table


def sweep_lines(scores: LayerScores) -> list[str]:
    """How far the ranking of layers depends on the damping, where a sweep says so."""
    sweep = scores.damping_sweep
    if sweep is None:
        return []
    if len(sweep.dampings) < 2:
        return ["The sweep has one damping, so there are no rankings of layers to compare."]
    dampings = ", ".join(f"{factor:g}" for factor in sweep.dampings)
    figures = ", ".join(f"{how} {rho:.2f}" for how, rho in sweep.least.items() if rho is not None)
    return [
        f"Lowest rank correlation (Spearman) of the layers' scores between dampings {dampings}: "
        f"{figures or 'none, the layers all score alike'}."
    ]


def metric_table(scores: MetricScores) -> Table:
    """One row a layer: its score, the range of its projections' and a bar up to the highest."""
    projections = scores.projections or []
    shown = [">layer", ">score", *([">projections"] if projections else []), ""]
    table = plain_table(f"{scores.metric} per decoder layer: {scores.model.name}", *shown)
    for layer, value in enumerate(scores.scores):
        row = [str(layer), f"{value:.4g}"]
        if projections:
            own = [p.score for p in projections if p.layer == layer]
            row.append(f"{min(own):.4g} to {max(own):.4g}")
        table.add_row(*row, _bar(value, max(scores.scores)))
    return table


def plan_table(plan: Plan) -> Table:
    """One row a layer: its share of the budget."""
    rules, label = plan.rules, plan.rules.label
    total = rules.form.format(plan.realised_total) + (" overall" if rules.weighted else " in all")
    title = f"{label[0].upper()}{label[1:]} per decoder layer: {total}"
    table = plain_table(title, ">layer", f">{plan.kind}", "")
    for layer, value in enumerate(plan.allocation):
        table.add_row(str(layer), rules.form.format(value), _bar(value, max(plan.allocation)))
    return table


def manifest_table(manifest: Manifest) -> Table:
    """One row a layer: sparsity asked for, zeros counted, and where it is known the output error.

    The error shown is the largest of the layer's projections.
    """
    pattern = f" {manifest.nm}" if manifest.nm else ""
    erring = any(m.error is not None for m in manifest.modules)
    shown = [">layer", ">asked", ">zeros", *([">patterns"] if pattern else [])]
    table = plain_table(
        f"{manifest.model.name} pruned by {manifest.method}{pattern}: "
        f"{manifest.sparsity:.2%} zeros",
        *(*shown, *([">error"] if erring else []), ""),
    )
    for layer, asked in enumerate(manifest.plan.allocation):
        modules = [m for m in manifest.modules if m.module.startswith(f"layers.{layer}.")]
        share = sum(m.zeros for m in modules) / sum(m.numel for m in modules)
        row = [str(layer), f"{asked:.2%}", f"{share:.2%}"]
        if pattern:
            row.append(" ".join(sorted({m.pattern for m in modules if m.pattern})))
        if erring:
            row.append(f"{max((m.error or 0.0 for m in modules), default=0.0):.2%}")
        table.add_row(*row, _bar(share, 1))
    return table


def dropped_lines(manifest: DroppedLayers) -> list[str]:
    """What was dropped, in words."""
    left, whole = manifest.parameters
    dropped = ", ".join(map(str, manifest.dropped))
    lines = [
        f"Dropped of {manifest.model.layers} layers, the first being 0: {dropped}. {left:,} of "
        f"{whole:,} parameters are left. "
        + (f"{manifest.merged} is merged." if manifest.merged else "Nothing was trained after it.")
    ]
    if manifest.precision is not None:
        lines.append(f"Saved in {manifest.precision}, the precision of the model's files.")
    return lines


def manifest_lines(manifest: Manifest) -> list[str]:
    """What a reader must know beside the table: other totals than asked for, damping, precision."""
    lines = []
    asked = manifest.planned_sparsity
    if manifest.nm and abs(manifest.asked_sparsity - asked) > SAME_TOTAL:
        lines.append(
            f"The plan asks for {asked:.4%} zeros; {manifest.asked_sparsity:.4%} is the nearest "
            f"that {manifest.nm} with its N by projection can be."
        )
    lines += _damped(manifest.modules)
    if manifest.precision is not None:
        lines.append(
            f"Computed in {manifest.setting.dtype} and saved in {manifest.precision}, the "
            "precision of the model's files."
        )
    return lines


def quantized_table(manifest: QuantizedManifest) -> Table:
    """One row a layer: bits and bytes of its projections, and where it is known the output error.

    The error shown is the largest of the layer's projections.
    """
    erring = any(m.error is not None for m in manifest.modules)
    group = f"groups of {manifest.group_size}" if manifest.group_size else "whole rows"
    table = plain_table(
        f"{manifest.model.name} quantised by {manifest.method}, {group}: "
        f"{manifest.bits:.2f} bits, {manifest.stored_bits:.2f} with scales",
        *(">layer", ">bits", ">from", ">to", ">bytes", *([">error"] if erring else []), ""),
    )
    for layer in range(len(manifest.plan.allocation)):
        modules = [m for m in manifest.modules if m.layer == layer]
        if not modules:
            continue
        mean = sum(m.bits * m.numel for m in modules) / sum(m.numel for m in modules)
        bits = [m.bits for m in modules]
        size = sum(m.bytes for m in modules)
        row = [str(layer), f"{mean:.2f}", str(min(bits)), str(max(bits)), f"{size:,}"]
        if erring:
            row.append(f"{max(m.error or 0.0 for m in modules):.2%}")
        table.add_row(*row, _bar(mean, 16))
    return table


def quantized_lines(manifest: QuantizedManifest) -> list[str]:
    """What a reader must know beside the table: bytes, damping, and what the folder holds."""
    others = [
        f"{other.name} {other.bytes:,} ({f'{other.bits} bits' if other.bits else 'as it was'})"
        for other in manifest.others
    ]
    lines = [
        f"Bytes: projections {manifest.bytes:,}, scales and zero points counted"
        + "".join(f"; {other}" for other in others)
    ]
    lines += _damped(manifest.modules)
    if manifest.packed is None:
        lines.append(
            f"The folder holds rounded weights in {manifest.precision}, for measuring, and is no "
            "smaller than before."
        )
    return lines


def _damped(modules: Sequence[PrunedModule | QuantizedModule]) -> list[str]:
    """Hessians that needed more damping than others did."""
    dampings = {m.module: m.damping for m in modules if m.damping is not None}
    least = min(dampings.values(), default=0.0)
    more = [f"{name} ({value:g})" for name, value in dampings.items() if value != least]
    if not more:
        return []
    others = " and others" if len(more) > SIDE_BY_SIDE else ""
    counted = "1 Hessian" if len(more) == 1 else f"{len(more)} Hessians"
    return [
        f"{counted} needed more damping than {least:g}: {', '.join(more[:SIDE_BY_SIDE])}{others}"
    ]


def finetuning_table(record: Finetuning) -> Table:
    """The losses as training went; of a long run, a dozen rows and that of the adapter kept.

    The training loss is the mean over the steps since the row above.
    """
    measured = {entry.step: entry.loss for entry in record.evaluations}
    table = plain_table(
        f"{record.model.name} fine-tuned on {task_name(record.task)}: "
        f"{METHODS[record.method]}, {record.trainable_parameters:,} trainable parameters",
        *(">step", ">training loss", *([">validation loss"] if measured else [])),
    )
    steps = sorted(measured) or [entry.step for entry in record.losses]
    shown = {steps[round(i * (len(steps) - 1) / (STEPS_SHOWN - 1))] for i in range(STEPS_SHOWN)}
    if record.best_step is not None:
        shown.add(record.best_step)
    above = 0
    for step in sorted(shown):
        since = [e.loss for e in record.losses if above < e.step <= step]
        kept = " (kept)" if step == record.best_step else ""
        row = [f"{step}", f"{sum(since) / len(since):.4f}" if since else ""]
        table.add_row(*row, *([f"{measured[step]:.4f}{kept}"] if measured else []))
        above = step
    return table


def results_table(results: Mapping[str, Results], title: str) -> Table:
    """Models side by side, one row each, one column a measurement.

    Many measurements of a single model have a row each instead.
    """
    name, first = next(iter(results.items()))
    if len(results) == 1 and len(first.measurements) > SIDE_BY_SIDE:
        return _one_below_the_other(name, first, title)
    columns = ["", ">sparsity"]
    for measurement in first.measurements:
        unit = _unit(measurement)
        if measurement.scoring != "likelihood":
            unit = f"{measurement.scoring}\n{unit}"
        columns.append(f">{measurement.name}\n{unit}")
        if _answer_loss(measurement) is not None:
            columns.append(f">{measurement.name}\nanswer loss ↓")
    table = plain_table(title, *columns)
    for name, result in results.items():
        figures = [figure for m in result.measurements for figure in _figures(m)]
        table.add_row(name, f"{result.sparsity:.2%}", *figures)
    return table


def _one_below_the_other(name: str, result: Results, title: str) -> Table:
    losses = any(_answer_loss(m) is not None for m in result.measurements)
    columns = ["", "", ">", *([">answer loss ↓"] if losses else [])]
    table = plain_table(f"{title}: {name}, {result.sparsity:.2%} zeros", *columns)
    for m in result.measurements:
        figure, *loss = _figures(m)
        table.add_row(titled(m.name, m.scoring), _unit(m), figure, *loss)
    return table


def reported_lines(results: Results) -> list[str]:
    """What lm-evaluation-harness reports beside measurements: of groups, and of other metrics."""
    lines = []
    for name, metrics in results.how.get("harness", {}).get("reported", {}).items():
        if shown := [f"{key} {v:.4g}" for key, v in metrics.items() if isinstance(v, float)]:
            lines.append(f"{titled(name, 'harness')}: {', '.join(shown)}")
    return lines


def caveat_lines(results: Mapping[str, Results]) -> list[str]:
    """What a reader must know beside the figures."""
    first = next(iter(results.values()))
    lines = [
        f"Measured on {titled(m.name, m.scoring)}: {m.count:,} {_counted(m)}."
        + (f" Chance is {m.details['chance']:.0%}." if "chance" in m.details else "")
        for m in first.measurements
    ]
    for name, result in results.items():
        of_model = f" of {name}" if len(results) > 1 else ""
        for m in result.measurements:
            if failures := m.details.get("parse_failures"):
                right = m.details.get("accuracy_of_parsed")
                others = "" if right is None else f"; of the others {right:.1%} are right"
                lines.append(
                    f"{failures} of {m.count:,} answers{of_model} on {m.name} could not be read, "
                    f"and count as wrong{others}."
                )
    if first.model.caveat:
        lines.append(f"{first.model.name} is {first.model.caveat}, not the published checkpoint.")
    return lines


def titled(name: str, scoring: str) -> str:
    """A measurement's name, and what it was read off where that is not likelihoods of our own."""
    return name if scoring == "likelihood" else f"{name} ({scoring})"


def _unit(measurement: Measurement) -> str:
    return "perplexity ↓" if measurement.metric == "perplexity" else "accuracy ↑"


def _counted(measurement: Measurement) -> str:
    accuracy = measurement.metric == "accuracy"
    counted = "rows" if accuracy else measurement.details.get("unit", "tokens")
    return counted if measurement.low is None else f"{counted}, ± half a 95 % interval"


def _figures(measurement: Measurement) -> list[str]:
    form = ".1%" if measurement.metric == "accuracy" else ".2f"
    shown = f"{measurement.value:{form}}"
    if measurement.low is not None and measurement.high is not None:
        shown += f" ± {(measurement.high - measurement.low) / 2:{form}}"
    loss = _answer_loss(measurement)
    return [shown] if loss is None else [shown, f"{loss:.3f}"]


def _answer_loss(measurement: Measurement) -> float | None:
    """Mean loss of the right answer, where answers were chosen by likelihood."""
    loss: float | None = measurement.details.get("completion_loss")
    return loss if measurement.metric == "accuracy" else None


def _bar(value: float, highest: float) -> Bar:
    return Bar(max(value / highest, 0.0) if highest > 0 else 0.0)


@dataclass(frozen=True)
class Bar:
    """A share as a bar, the whole as long as there is room in the terminal for, at most `BAR`.

    Cut off at the edge instead, bars would all look alike.
    """

    share: float

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("█" * round(min(BAR, options.max_width) * self.share))

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Width:
        return Width(LEAST, BAR).with_maximum(options.max_width)


class _PlainTable(Table):
    """A table whose words are taken as they are: brackets in a name are no markup of rich's."""

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        super().add_column(_plain(header), *arguments, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(_plain, cells), **options)


def _plain(cell: Any) -> Any:
    return Text(harmless(cell)) if isinstance(cell, str) else cell


def plain_table(title: str, *columns: str) -> Table:
    """An empty table in the style of all of them; for any console, and whatever is put in it.

    Args:
        title: above the table.
        columns: their headings; a column of figures, aligned to the right, has a `>` before its.
    """
    table = _PlainTable(title=Text(harmless(title), "bold"), title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left")
    return table
