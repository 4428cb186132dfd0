"""Try several plans on one model, under one recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.command import Command
from layerif.cli.compare_experts import COMPARED_SCORES, experts
from layerif.cli.derived import with_rules
from layerif.cli.lazy import group
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe
from layerif.core.options import Rule, Values
from layerif.data.options import CalibrationOptions, PromptOptions
from layerif.evaluation.options import EvaluateOptions, has_corpus, has_task
from layerif.model.options import ModelOptions
from layerif.plans.named import PLANS
from layerif.workflows.options import SparsityStudy

app = group(no_args_is_help=True, help="Try several plans on one model, under one recipe.")
app.command("experts", cls=Command)(experts)


class ComparedOptions(EvaluateOptions):
    """How the pruned models are measured; chunks are as long as those of calibration."""

    rules = (
        Rule("samples max_length scoring", has_task, "for tasks"),
        Rule("max_tokens", has_corpus, "for corpora"),
    )


def _others(name: str) -> Callable[[Values], bool]:
    """Whether another plan than one is compared."""
    return lambda v: bool({*options.words(v["plans"])} - {name})


@with_rules(
    COMPARED_SCORES,
    Rule("tries", _others("uniform"), "where another plan than uniform is among {plans}"),
)
def sparsity(
    context: typer.Context,
    model: ModelOptions,
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks", help="Tasks and corpora to measure on, with commas.", show_default=False
        ),
    ],
    out: options.OutFolder,
    study: SparsityStudy,
    text: CalibrationOptions,
    prompts: PromptOptions,
    measuring: ComparedOptions,
    plans: Annotated[
        str, typer.Option("--plans", help=f"With commas: {', '.join(PLANS['sparsity'].names())}.")
    ] = "alphapruning,owl,dlp,marginal",
    scores: options.InfluenceScores = None,
    as_json: options.Json = False,
) -> None:
    """Prune by several sparsity plans and measure all on the same items, beside the dense model.

    Each plan may try as many values of its parameter as any other, judged on calibration text that
    pruning does not see; the best is then measured. Differences from the uniform plan are tested in
    pairs. Interrupted, the same command goes on after the last finished try.
    """
    from layerif.artifacts import Comparisons, LayerScores
    from layerif.data import load_corpus, load_sources
    from layerif.plans.named import find_plan
    from layerif.workflows.folder import RunFolder

    names = options.words(plans)
    for name in names:
        find_plan(name, "sparsity")
    RunFolder(out, "compare sparsity").check()
    influence = None if scores is None else LayerScores.load(scores)
    corpus = load_corpus(text.calibration, data_dir=prompts.data_dir)
    words = prompts.loading(model.model, trust_remote_code=model.trust_remote_code)
    sources = load_sources(options.words(tasks), **words)

    from layerif.report.comparisons import comparison_lines
    from layerif.report.tables import caveat_lines, results_table
    from layerif.workflows.compare_sparsity import COMPARISON_FILE, compare_sparsity

    opened, tokenizer = model.open()
    results = compare_sparsity(
        out,
        opened,
        tokenizer,
        names,
        study,
        calibration=corpus,
        on=sources,
        options=measuring.part(EvaluateOptions),
        influence=influence,
    )
    write_recipe(context, out)
    value = {name: found.model_dump(mode="json") for name, found in results.items()}
    pattern = "" if study.nm is None else f", {study.nm}"
    title = f"Pruned to {study.sparsity:.0%} by {study.method}{pattern}"
    emit(results_table(results, title), value, as_json=as_json)
    for line in caveat_lines(results):
        say(line, as_json=as_json)
    found = Comparisons.load(out / COMPARISON_FILE) if len(results) > 2 else None
    for line in comparison_lines(found.comparisons) if found else ():
        say(line, as_json=as_json)
    say(f"wrote {out}", as_json=as_json)


app.command("sparsity", cls=Command)(sparsity)
