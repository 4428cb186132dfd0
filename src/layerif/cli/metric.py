"""Measure every decoder layer by a metric other than influence: a baseline, or a control."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from layerif.cli import options
from layerif.cli.command import given
from layerif.cli.derived import expanded
from layerif.cli.lazy import ListedGroup, docstring_of, single
from layerif.cli.replay import finish
from layerif.core.options import Options, Rule, Values
from layerif.data.options import CalibrationOptions, TaskOptions
from layerif.errors import InputError
from layerif.metrics.options import MeasureOptions
from layerif.metrics.registry import (
    METRICS,
    complete_options,
    is_seeded,
    reads_model,
    reads_text,
    takes_samples,
)
from layerif.model.options import PlacedModelOptions


class MetricTaskOptions(TaskOptions):
    """A task, for a metric that takes samples."""

    task: str | None = None  # type: ignore[assignment]
    """One of `layerif tasks`, or a JSONL, CSV or parquet file, in place of calibration text; for
    adapter_gain."""


def _own_options(name: str) -> type[Options]:
    """A metric's options, with those of all others where it is made of one."""
    metric = METRICS.find(name)
    others = [METRICS.find(each) for each in METRICS.names()] if metric.of_another else []
    classes = dict.fromkeys(
        each.options for each in (metric, *others) if each.options is not Options
    )
    if len(classes) < 2:
        return metric.options
    return type(f"{name}_options", tuple(classes), {"title": "Metric"})


def _rules(name: str) -> tuple[Rule, ...]:
    """Which options of the command of a metric have an effect."""

    def when(needs: Callable[[str, dict[str, Any]], bool]) -> Callable[[Values], bool]:
        def holds(values: Values) -> bool:
            try:
                of_metric = complete_options(name, {"of": values["of"]} if values.get("of") else {})
            except InputError:
                return True  # which the command says itself
            return needs(name, of_metric)

        return holds

    def taken(option: str) -> Callable[[Values], bool]:
        return when(lambda _name, of_metric: option in of_metric)

    reads = when(reads_text)
    draws = when(lambda *metric: reads_text(*metric) or is_seeded(*metric))
    others = set(_own_options(name).model_fields) - set(METRICS.find(name).options.model_fields)
    return (
        *(Rule(option, taken(option), "with {of} a metric that takes it") for option in others),
        options.beside("train_samples validation_samples max_length", "task"),
        Rule(
            "calibration calibration_samples context_length",
            lambda v: v.get("task") is None and reads(v),
            "for metrics that read calibration text, without {task}",
        ),
        Rule("batch_tokens data_dir", reads, "for metrics that run the model"),
        Rule("seed", draws, "for metrics that draw text or numbers"),
        Rule("dtype device device_map", when(reads_model), "for metrics that read the model"),
    )


def measure(
    context: typer.Context,
    model: PlacedModelOptions,
    out: Annotated[Path, typer.Option(help="JSON file to write the scores to.")],
    own: Options,
    text: CalibrationOptions,
    how: MeasureOptions,
    task: MetricTaskOptions,
    samples: options.MoreSampleOptions,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """The file written, with a picture beside it, is what `layerif allocate` takes."""
    from layerif.artifacts import MetricScores
    from layerif.core.checkpoint import check_out
    from layerif.data import load_corpus

    name = context.info_name or ""
    check_out(out, MetricScores.file_kind(), overwrite=overwrite)
    said = given(context)
    of_metric = complete_options(name, {n: v for n, v in own.values().items() if n in said})

    from layerif.model.opening import open_skeleton
    from layerif.report.plots import leave_picture, plot_metric
    from layerif.report.tables import metric_table
    from layerif.workflows.stages import MetricSamples, measure_into

    on: Any = None
    if task.task is not None:
        if not takes_samples(name, of_metric):
            raise InputError(
                f"the metric {name} takes no samples of a task; leave out --task, or choose "
                "adapter_gain"
            )
        data = task.load(model.model, trust_remote_code=model.trust_remote_code)
        train = samples.rows(data, "train", how.seed)
        on = MetricSamples(data, train, samples.rows(data, "validation", how.seed))
    elif reads_text(name, of_metric):
        on = load_corpus(text.calibration, data_dir=task.data_dir)
    if reads_model(name, of_metric):
        opened, tokenizer = model.open()
    else:
        opened = open_skeleton(model.model, trust_remote_code=model.trust_remote_code)
        tokenizer = None
    scores = measure_into(
        out,
        opened,
        tokenizer,
        name,
        on=on,
        options=how,
        of_metric=of_metric,
        overwrite=overwrite,
    )
    leave_picture(plot_metric, scores, beside=out)
    finish(context, out, metric_table(scores), scores, as_json=as_json)


def _purpose(name: str) -> str:
    """What a metric is for, by its docstring."""
    module = METRICS.module_of(name)
    if module is None:
        return METRICS.find(name).function.__doc__ or ""
    return docstring_of(module, name)


def _command(name: str) -> Any:
    """The command of a metric, with its own options."""
    command = expanded(measure, rules=_rules(name), own=_own_options(name))
    purpose, _, _ = _purpose(name).partition("\n\n")
    return single(command, name, help=f"{purpose}\n\n{measure.__doc__}")


app = ListedGroup(METRICS.names, _purpose, _command, help=__doc__)
