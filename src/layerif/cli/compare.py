"""Try several plans on one model, under one recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.command import Command
from layerif.cli.compare_experts import experts
from layerif.cli.lazy import group
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe
from layerif.core.choices import PruningMethod
from layerif.plans.named import PLANS

app = group(no_args_is_help=True, help="Try several plans on one model, under one recipe.")
app.command("experts", cls=Command)(experts)


@app.command("sparsity", cls=Command)
def sparsity(
    context: typer.Context,
    model: options.Model,
    target: Annotated[
        float,
        typer.Option(
            "--sparsity", help="Fraction of zeros over all projections.", show_default=False
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks", help="Tasks and corpora to measure on, with commas.", show_default=False
        ),
    ],
    out: options.OutFolder,
    plans: Annotated[
        str, typer.Option("--plans", help=f"With commas: {', '.join(PLANS['sparsity'].names())}.")
    ] = "alphapruning,owl,dlp,marginal",
    scores: options.InfluenceScores = None,
    method: Annotated[PruningMethod, typer.Option("--method", help="How weights are chosen.")] = (
        "wanda"
    ),
    nm: Annotated[
        str | None,
        typer.Option(
            "--nm",
            help="N:M pattern, whose N each projection takes from its plan: 4:8.",
            show_default=False,
        ),
    ] = None,
    tries: Annotated[
        int, typer.Option("--tries", help="Values that each plan tries on held-out text.")
    ] = 4,
    held_out_tokens: Annotated[
        int, typer.Option("--held-out-tokens", help="Calibration text that tries are judged by.")
    ] = 8192,
    calibration: options.Calibration = "python-docs",
    calibration_samples: options.CalibrationSamples = 32,
    context_length: options.ContextLength = 512,
    batch_tokens: options.BatchTokens = 2048,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Test rows of each task.", show_default="all")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Tokens of each corpus.", show_default="all")
    ] = None,
    max_length: options.MaxLength = 512,
    style: options.Style = "alpaca",
    template_option: options.TemplateOption = None,
    dtype: options.DtypeOption = "float32",
    device: options.Device = "auto",
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Prune by several sparsity plans and measure all on the same items, beside the dense model.

    Each plan may try as many values of its parameter as any other, judged on calibration text that
    pruning does not see; the best is then measured. Differences from the uniform plan are tested in
    pairs. Cut short, the same command goes on after the last finished try.
    """
    from layerif.artifacts import Comparisons, LayerScores
    from layerif.data import load_corpus, load_sources
    from layerif.workflows.folder import RunFolder

    names = options.words(plans)
    for name in names:
        PLANS["sparsity"].check(name)
    RunFolder(out, "compare sparsity").check()
    influence = None if scores is None else LayerScores.load(scores)
    corpus = load_corpus(calibration, data_dir=data_dir)
    words = options.prompts(style, template_option, model, trust_remote_code=trust_remote_code)
    wanted = [word.strip() for word in tasks.split(",")]
    sources = load_sources(wanted, data_dir=data_dir, **words)

    from layerif.model.opening import open_model
    from layerif.report import caveat_lines, comparison_lines, results_table
    from layerif.workflows.compare_sparsity import COMPARISON_FILE, SparsityStudy, compare_sparsity

    study = SparsityStudy(
        sparsity=target,
        method=method,
        nm=nm,
        tries=tries,
        samples=calibration_samples,
        context_length=context_length,
        held_out_tokens=held_out_tokens,
        seed=seed,
        batch_tokens=batch_tokens,
    )
    opened, tokenizer = open_model(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    results = compare_sparsity(
        out,
        opened,
        tokenizer,
        names,
        study,
        calibration=corpus,
        on=sources,
        options={
            "samples": samples,
            "seed": seed,
            "max_length": max_length,
            "context_length": context_length,
            "max_tokens": max_tokens,
            "batch_tokens": batch_tokens,
        },
        influence=influence,
    )
    write_recipe(context, out)
    value = {name: found.model_dump(mode="json") for name, found in results.items()}
    pattern = "" if nm is None else f", {nm}"
    title = f"Pruned to {target:.0%} by {method}{pattern}"
    emit(results_table(results, title), value, as_json=as_json)
    for line in caveat_lines(results):
        say(line, as_json=as_json)
    found = Comparisons.load(out / COMPARISON_FILE) if len(results) > 2 else None
    for line in comparison_lines(found.comparisons) if found else ():
        say(line, as_json=as_json)
    say(f"wrote {out}", as_json=as_json)
