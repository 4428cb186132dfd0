"""Try several plans on one model, under one recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from layerif.cli import options
from layerif.cli.command import Command
from layerif.cli.derived import with_rules
from layerif.cli.lazy import group
from layerif.cli.replay import finish
from layerif.cli.search import TextOptions
from layerif.core.options import Rule, Values, words
from layerif.data.options import CalibrationOptions, PromptOptions, TaskOptions
from layerif.evaluation.options import EvaluateOptions, has_corpus, has_task
from layerif.model.options import ModelOptions
from layerif.plans.named import INFLUENCE, PLANS, plans_among
from layerif.workflows.options import (
    DEPTH_COMPARED,
    MODELS_COMPARED,
    BitsStudy,
    DepthStudy,
    ExpertsStudy,
    ModelStudy,
    SparsityStudy,
)

if TYPE_CHECKING:
    from layerif.artifacts import Results
    from layerif.workflows.compare_experts import Cells

app = group(no_args_is_help=True, help=__doc__)

InfluenceScores = Annotated[
    Path | None, typer.Option(help="Run folder of `layerif score`, for plans made from influence.")
]


def _reads_influence(values: Values) -> bool:
    """Whether a plan compared is made from influence."""
    names = words(values["plans"])
    return any(p.metric == INFLUENCE for kind in PLANS for p in plans_among(names, kind))


COMPARED_SCORES = Rule(
    "scores",
    _reads_influence,
    "where a plan made from influence, such as layerif, is among {plans}",
)


@app.command("experts", cls=Command)
@with_rules(COMPARED_SCORES)
def experts(
    context: typer.Context,
    model: ModelOptions,
    task: TaskOptions,
    total: Annotated[int, typer.Option(help="Experts of all layers together.")],
    out: options.OutFolder,
    study: ExpertsStudy,
    plans: Annotated[
        str,
        typer.Option(
            help=f"With commas: {', '.join(PLANS['experts'].names())}, or files of plans. mola "
            "takes any digits, lora is plain, of equal total rank; uniform always comes first."
        ),
    ] = "mola-2468,alphalora,lora",
    scores: InfluenceScores = None,
    preset: options.PresetOption = None,
    as_json: options.Json = False,
) -> None:
    """Train by several plans of experts with equal steps and seeds, and measure all on test rows.

    Every plan has the same experts in all, or as plain LoRA the same total rank. The table has the
    mean over seeds; differences from the uniform plan are tested with seeds and rows resampled.
    Interrupted, the same command goes on after the last whole checkpoint.
    """
    from layerif.artifacts import LayerScores
    from layerif.workflows.folder import RunFolder

    RunFolder(out, "compare experts").check()
    influence = None if scores is None else LayerScores.load(scores)
    data = task.load(model.model, trust_remote_code=model.trust_remote_code)

    from layerif.workflows.compare_experts import check_plans, compare_experts, plans_of, scorer

    opened, tokenizer = model.open()
    names = words(plans)
    check_plans(names, total, model=opened, options=study, scored=scores is not None)
    chosen = plans_of(names, total, scorer(opened, influence, study.seed), study.rank)
    cells = compare_experts(out, opened, tokenizer, chosen, study, task=data)
    counted = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    title = f"{total} experts trained by several plans, {counted}"
    table, value, lines = cells_shown(cells, title, out)
    finish(context, out, table, value, *lines, as_json=as_json)


def cells_shown(
    cells: Mapping[str, Cells], title: str, folder: Path
) -> tuple[Table, dict[str, Any], list[str]]:
    """Plans trained in a folder: a table, the same for machines, and how they compare, in words."""
    from layerif.artifacts import Comparisons
    from layerif.report.comparisons import comparison_lines, seeds_table
    from layerif.workflows.bench import COMPARISON_FILE

    rows = next(iter(cells.values())).results[0].measurements[0].count
    figures = {name: own.figures for name, own in cells.items()}
    parameters = {name: own.trainable_parameters for name, own in cells.items()}
    value = {
        name: {"trainable_parameters": parameters[name], "figures": figures[name]} for name in cells
    }
    table = seeds_table(figures, parameters, f"{title}, {rows:,} test rows")
    comparisons = Comparisons.load(folder / COMPARISON_FILE).comparisons
    return table, value, comparison_lines(comparisons)


MeasuredOn = Annotated[str, typer.Option(help="Tasks and corpora to measure on, with commas.")]


class ComparedOptions(EvaluateOptions):
    """How the compressed models are measured; chunks are as long as those of calibration."""

    rules = (
        Rule("samples max_length scoring", has_task, "for tasks"),
        Rule("max_tokens", has_corpus, "for corpora"),
    )


@app.command("sparsity", cls=Command)
@with_rules(COMPARED_SCORES, *MODELS_COMPARED)
def sparsity(
    context: typer.Context,
    model: ModelOptions,
    tasks: MeasuredOn,
    out: options.OutFolder,
    study: SparsityStudy,
    text: CalibrationOptions,
    prompts: PromptOptions,
    measuring: ComparedOptions,
    plans: Annotated[
        str, typer.Option(help=f"With commas: {', '.join(PLANS['sparsity'].names())}.")
    ] = "alphapruning,owl,dlp,quadratic-marginal",
    scores: InfluenceScores = None,
    as_json: options.Json = False,
) -> None:
    """Prune by several sparsity plans and measure all on the same items, beside the dense model.

    Each plan may try as many values of its parameter as any other, judged on calibration text that
    pruning does not see; the best is then measured. Differences from the uniform plan are tested in
    pairs. Interrupted, the same command goes on after the last finished try.
    """
    results = _compared(out, model, words(plans), study, text, prompts, measuring, tasks, scores)
    pattern = "" if study.nm is None else f", {study.nm}"
    title = f"Pruned to {study.sparsity:.0%} by {study.method}{pattern}"
    _print(context, out, title, results, _said(results, out), as_json=as_json)


@app.command("bits", cls=Command)
@with_rules(COMPARED_SCORES, *MODELS_COMPARED)
def bits(
    context: typer.Context,
    model: ModelOptions,
    tasks: MeasuredOn,
    out: options.OutFolder,
    study: BitsStudy,
    text: CalibrationOptions,
    prompts: PromptOptions,
    measuring: ComparedOptions,
    plans: Annotated[
        str, typer.Option(help=f"With commas: {', '.join(PLANS['bits'].names())}.")
    ] = "rule,local,slope,quadratic",
    scores: InfluenceScores = None,
    as_json: options.Json = False,
) -> None:
    """Quantise by several plans of bits and measure all on the same items, beside the dense model.

    All plans have the same mean of bits. Searched plans are judged on calibration text that
    quantisation does not see. Differences from the uniform plan are tested in pairs. Interrupted,
    the same command goes on after the last finished plan.
    """
    results = _compared(out, model, words(plans), study, text, prompts, measuring, tasks, scores)
    title, lines = quantised_shown(results, study, out)
    _print(context, out, title, results, lines, as_json=as_json)


def quantised_shown(
    results: dict[str, Results], study: BitsStudy, folder: Path
) -> tuple[str, list[str]]:
    """A title for plans of bits compared in a folder; their size and how they compare, in words."""
    from layerif.core.files import read_json
    from layerif.workflows.compare_models import TUNING_FILE

    tuning = read_json(folder / TUNING_FILE, "tuning")
    said = ", ".join(f"{name} {own['bytes'] / 1e6:.2f} MB" for name, own in tuning.items())
    whole = 2 * sum(next(iter(results.values())).model.layer_sizes)
    group = f"groups of {study.group_size}" if study.group_size else "one scale a row"
    return (
        f"Quantised to {study.bits:g} bits a weight by {study.method}, {group}",
        [
            f"The projections take {said}, scales counted; {whole / 1e6:.2f} MB at 16 bits.",
            *_said(results, folder),
        ],
    )


@app.command("depth", cls=Command)
@with_rules(*DEPTH_COMPARED)
def depth(
    context: typer.Context,
    model: ModelOptions,
    tasks: MeasuredOn,
    out: options.OutFolder,
    study: DepthStudy,
    text: TextOptions,
    prompts: PromptOptions,
    measuring: ComparedOptions,
    plans: Annotated[
        str, typer.Option(help=f"With commas: {', '.join(PLANS['depth'].names())}.")
    ] = "shortlist,block_influence,contiguous,taylor,quadratic,random",
    as_json: options.Json = False,
) -> None:
    """Drop as many layers by several plans, and measure all on the same items.

    The dense model is measured beside them. Differences from the first plan are tested in pairs.
    Nothing is trained. Interrupted, the same command goes on after the last finished plan.
    """
    names = words(plans)
    _check_study(out, names, "depth")
    on = _read(model, text.calibration, prompts, tasks)

    from layerif.workflows.compare_depth import compare_depth

    results = compare_depth(
        out, *model.open(), names, study, **on, options=measuring.part(EvaluateOptions)
    )
    title, lines = dropped_shown(results, study, out)
    _print(context, out, title, results, lines, as_json=as_json)


def dropped_shown(
    results: dict[str, Results], study: DepthStudy, folder: Path
) -> tuple[str, list[str]]:
    """A title for depth plans compared in a folder, and how they compare, in words."""
    many = "" if study.drop == 1 else "s"
    return f"{study.drop} {study.unit}{many} dropped", _said(results, folder)


def _compared(
    out: Path,
    model: ModelOptions,
    names: list[str],
    study: ModelStudy,
    text: CalibrationOptions,
    prompts: PromptOptions,
    measuring: ComparedOptions,
    tasks: str,
    scores: Path | None,
) -> dict[str, Results]:
    """Results by plan."""
    from layerif.artifacts import LayerScores

    _check_study(out, names, study.kind)
    influence = None if scores is None else LayerScores.load(scores)
    on = _read(model, text.calibration, prompts, tasks)

    from layerif.workflows.compare_models import compare_models

    return compare_models(
        out,
        *model.open(),
        names,
        study,
        **on,
        options=measuring.part(EvaluateOptions),
        influence=influence,
    )


def _check_study(out: Path, names: list[str], kind: str) -> None:
    """Refuse plans that there are not, and a folder of something else, before any work."""
    from layerif.plans.named import find_plan
    from layerif.workflows.folder import RunFolder

    for name in names:
        find_plan(name, kind)
    RunFolder(out, f"compare {kind}").check()


def _read(model: ModelOptions, calibration: str, prompts: PromptOptions, tasks: str) -> Any:
    """The calibration text, and what models are measured on, by the names of the arguments."""
    from layerif.data import load_corpus, load_sources

    how = prompts.loading(model.model, trust_remote_code=model.trust_remote_code)
    return {
        "calibration": load_corpus(calibration, data_dir=prompts.data_dir),
        "on": load_sources(words(tasks), **how),
    }


def _said(results: dict[str, Results], out: Path) -> list[str]:
    """What a reader must know of results, and how the plans compare."""
    from layerif.artifacts import Comparisons
    from layerif.report.comparisons import comparison_lines
    from layerif.report.tables import caveat_lines
    from layerif.workflows.bench import COMPARISON_FILE

    lines = [*caveat_lines(results)]
    if len(results) > 2:
        lines += comparison_lines(Comparisons.load(out / COMPARISON_FILE).comparisons)
    return lines


def _print(
    context: typer.Context,
    out: Path,
    title: str,
    results: dict[str, Results],
    lines: list[str],
    *,
    as_json: bool,
) -> None:
    from layerif.report.tables import results_table

    finish(context, out, results_table(results, title), results, *lines, as_json=as_json)
