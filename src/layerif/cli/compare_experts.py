"""`layerif compare experts`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from layerif.cli import options
from layerif.cli.derived import with_rules
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe
from layerif.core.options import Rule, Values
from layerif.data.options import TaskOptions
from layerif.model.options import ModelOptions
from layerif.plans.named import INFLUENCE, PLANS, plans_among
from layerif.workflows.options import ExpertsStudy

if TYPE_CHECKING:
    from layerif.workflows.compare_experts import Cells


def _reads_influence(values: Values) -> bool:
    """Whether a plan compared is made from influence."""
    words = options.words(values["plans"])
    return any(p.metric == INFLUENCE for kind in PLANS for p in plans_among(words, kind))


COMPARED_SCORES = Rule(
    "scores",
    _reads_influence,
    "where a plan made from influence, such as layerif, is among {plans}",
)


@with_rules(COMPARED_SCORES)
def experts(
    context: typer.Context,
    model: ModelOptions,
    task: TaskOptions,
    total: Annotated[
        int, typer.Option("--total", help="Experts of all layers together.", show_default=False)
    ],
    out: options.OutFolder,
    study: ExpertsStudy,
    plans: Annotated[
        str,
        typer.Option(
            "--plans",
            help=f"With commas: {', '.join(PLANS['experts'].names())}, or files of plans. mola "
            "takes any digits, lora is plain, of equal total rank; uniform always comes first.",
        ),
    ] = "mola-2468,alphalora,lora",
    scores: options.InfluenceScores = None,
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

    from layerif.workflows.compare_experts import (
        check_plans,
        compare_experts,
        names_of,
        plans_of,
        scorer,
    )

    opened, tokenizer = model.open()
    names = names_of(options.words(plans))
    check_plans(names, total, model=opened, options=study, scored=scores is not None)
    chosen = plans_of(names, total, scorer(opened, influence, study.seed), study.rank)
    cells = compare_experts(out, opened, tokenizer, chosen, study, task=data)
    write_recipe(context, out)
    counted = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    title = f"{total} experts trained by several plans, {counted}"
    emit(cells_table(cells, title), cells_value(cells), as_json=as_json)
    for line in cells_lines(out):
        say(line, as_json=as_json)
    say(f"wrote {out}", as_json=as_json)


def cells_table(cells: Mapping[str, Cells], title: str) -> Table:
    """Plans side by side."""
    from layerif.report.comparisons import seeds_table
    from layerif.workflows.compare_experts import figures_by_seed, trained_parameters

    rows = next(iter(cells.values())).results[0].measurements[0].count
    title = f"{title}, {rows:,} test rows"
    return seeds_table(figures_by_seed(cells), trained_parameters(cells), title)


def cells_value(cells: Mapping[str, Cells]) -> dict[str, Any]:
    """The same for machines."""
    from layerif.workflows.compare_experts import figures_by_seed, trained_parameters

    parameters = trained_parameters(cells)
    return {
        name: {"trainable_parameters": parameters[name], "figures": own}
        for name, own in figures_by_seed(cells).items()
    }


def cells_lines(folder: Path) -> list[str]:
    """How the plans of a folder compare, in words; none where there is but one."""
    from layerif.artifacts import Comparisons
    from layerif.report.comparisons import comparison_lines
    from layerif.workflows.compare_experts import COMPARISON_FILE

    return comparison_lines(Comparisons.load(folder / COMPARISON_FILE).comparisons)
