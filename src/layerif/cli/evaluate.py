"""`layerif evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from layerif.cli import options
from layerif.cli.derived import with_rules
from layerif.cli.output import emit
from layerif.cli.replay import write_recipe
from layerif.core.options import Options, Rule, Shown
from layerif.data.options import PromptOptions
from layerif.errors import InputError
from layerif.evaluation.options import EvaluateOptions
from layerif.model.options import AdapterOptions, PlacedModelOptions

if TYPE_CHECKING:
    from layerif.artifacts import Results


class SourceOptions(Options):
    """What the model is measured on, by whom."""

    title = "Evaluation"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "shots",
            lambda v: v.get("harness") is not None,
            "for tasks of lm-evaluation-harness, with {harness}",
        ),
    )

    tasks: str | None = None
    """Tasks and corpora, separated by commas, see `layerif tasks`."""
    harness: str | None = None
    """Tasks of lm-evaluation-harness, separated by commas."""
    shots: Annotated[int | None, Shown("the task's, mostly 0")] = None
    """Solved rows before a question."""


@with_rules(options.beside("no_cache", "tasks"), options.beside("overwrite", "out"))
def evaluate(
    context: typer.Context,
    model: PlacedModelOptions,
    adapter: AdapterOptions,
    prompts: PromptOptions,
    how: EvaluateOptions,
    on: SourceOptions,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the results to.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Results of another model on the same rows, to compare with in pairs."),
    ] = None,
    no_cache: options.NoCache = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure accuracy on tasks' test splits, and perplexity on corpora.

    With --harness, beside --tasks or alone, lm-evaluation-harness measures the model on tasks of
    its own, with its own prompts. With --against, say how each figure differs from another model's,
    and whether that is more than noise.
    """
    from layerif.artifacts import Results
    from layerif.core.checkpoint import check_out
    from layerif.data import Task, load_sources

    if on.tasks is None and on.harness is None:
        raise InputError(
            "say what to measure: --tasks TASKS, --harness TASKS of lm-evaluation-harness, or both"
        )
    if out is not None:
        check_out(out, Results.file_kind(), overwrite=overwrite)
    words = prompts.loading(model.model, trust_remote_code=model.trust_remote_code)
    sources = load_sources(_names(on.tasks), **words)
    wanted: set[tuple[str, str]] = {
        (s.name, how.scoring if isinstance(s, Task) else "likelihood") for s in sources
    }
    loaded = None
    if on.harness is not None:
        from layerif.evaluation.harness import load_harness

        loaded = load_harness(
            _names(on.harness),
            shots=on.shots,
            samples=how.samples,
            seed=how.seed,
            data_dir=prompts.data_dir,
        )
        wanted |= {(name, "harness") for name in loaded.tasks}
    reference = None if against is None else _reference(against, wanted)
    from layerif.evaluation.comparison import compare
    from layerif.evaluation.evaluate import check_same_items
    from layerif.model.opening import open_tokenizer
    from layerif.report.comparisons import comparison_lines
    from layerif.report.tables import caveat_lines, reported_lines, results_table
    from layerif.workflows.stages import evaluate_into

    if reference is not None:
        own = words["tokenizer"] or open_tokenizer(
            model.model, trust_remote_code=model.trust_remote_code
        )
        check_same_items(model.model, str(against), reference, own, sources, options=how)
    results = evaluate_into(
        out,
        *model.open(**adapter.values()),
        sources,
        options=how,
        harness=loaded,
        cache=options.likelihood_cache(no_cache=no_cache),
        overwrite=overwrite,
    )
    shown = {results.model.title: results}
    lines = [*reported_lines(results), *caveat_lines(shown)]
    if out is not None:
        write_recipe(context, out)
        lines.append(f"wrote {out}")
    if reference is None or not as_json:
        emit(results_table(shown, "Evaluation"), results, *lines, as_json=as_json)
    if reference is not None:
        # Last, so that figures which turn out to be of other rows are kept and shown all the same.
        compared = compare({**shown, str(against): reference}, str(against))
        value = {"results": results, "comparisons": compared}
        emit(None, value, *comparison_lines(compared), as_json=as_json)


def _names(listed: str | None) -> list[str]:
    return [] if listed is None else [name.strip() for name in listed.split(",")]


def _reference(path: Path, wanted: set[tuple[str, str]]) -> Results:
    """Results to compare with, refused before the evaluation where they cannot serve.

    `wanted` has the name and the scoring of what is to be measured.
    """
    from layerif.artifacts import Results
    from layerif.report.tables import titled

    reference = Results.load(path)
    shared = [m for m in reference.measurements if (m.name, m.scoring) in wanted]
    if not shared:
        has = ", ".join(titled(m.name, m.scoring) for m in reference.measurements) or "nothing"
        names = ", ".join(titled(*pair) for pair in sorted(wanted))
        raise InputError(
            f"{path} has results on {has}, and {names} is to be measured: there is nothing to "
            "compare"
        )
    if any(m.outcomes is None for m in shared):
        raise InputError(
            f"{path} holds no outcomes item by item, which a comparison in pairs needs; measure "
            "that model again"
        )
    return reference
