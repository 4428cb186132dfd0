"""`layerif compare experts`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from layerif.cli import options, training
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe

if TYPE_CHECKING:
    from layerif.workflows.compare_experts import Cells


def experts(
    context: typer.Context,
    model: options.Model,
    task: options.Task,
    total: Annotated[
        int, typer.Option("--total", help="Experts of all layers together.", show_default=False)
    ],
    out: options.OutFolder,
    plans: Annotated[
        str,
        typer.Option(
            "--plans",
            help="With commas: layerif, alphalora, mola-2468 and the like, random, lora (plain, of "
            "equal total rank), or files of plans; uniform always comes first.",
        ),
    ] = "mola-2468,alphalora,lora",
    scores: options.InfluenceScores = None,
    seeds: Annotated[
        str, typer.Option("--seeds", help="Of the training runs of each plan, with commas.")
    ] = "0,1,2",
    samples: Annotated[
        int | None, typer.Option("--samples", help="Test rows.", show_default="all")
    ] = None,
    preset: options.PresetOption = None,
    train_samples: training.TrainSamples = None,
    validation_samples: training.ValidationSamples = 100,
    rank: training.Rank = 8,
    alpha: training.Alpha = 16.0,
    dropout: training.Dropout = 0.0,
    strict_dropout: training.StrictDropout = False,
    top_k: training.TopK = 2,
    balance: training.Balance = 0.0,
    epochs: training.Epochs = 3.0,
    max_steps: training.MaxSteps = None,
    batch_size: training.BatchSize = 16,
    learning_rate: training.LearningRate = 3e-4,
    schedule: training.ScheduleOption = "linear",
    warmup_ratio: training.WarmupRatio = 0.03,
    weight_decay: training.WeightDecay = 0.0,
    max_grad_norm: training.MaxGradNorm = 1.0,
    append_eos: training.AppendEos = True,
    evaluate_every: training.EvaluateEvery = None,
    patience: training.Patience = None,
    checkpoint_every: training.CheckpointEvery = 50,
    gradient_checkpointing: training.GradientCheckpointing = False,
    style: options.Style = "alpaca",
    template_option: options.TemplateOption = None,
    max_length: options.MaxLength = 512,
    batch_tokens: options.BatchTokens = 2048,
    dtype: options.DtypeOption = "float32",
    device: options.Device = "auto",
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Train by several plans of experts with equal steps and seeds, and measure all on test rows.

    Every plan has the same experts in all, or as plain LoRA the same total rank. The table has the
    mean over seeds; differences from the uniform plan are tested with seeds and rows resampled. Cut
    short, the same command goes on after the last whole checkpoint.
    """
    from layerif.artifacts import LayerScores
    from layerif.data import load_task
    from layerif.workflows.folder import RunFolder

    numbers = options.whole_numbers(seeds, "--seeds")
    RunFolder(out, "compare experts").check()
    influence = None if scores is None else LayerScores.load(scores)
    words = options.prompts(style, template_option, model, trust_remote_code=trust_remote_code)
    data = load_task(task, data_dir=data_dir, **words)
    count = options.rows(context, data, "validation")

    from layerif.metrics.measuring import metric_scores
    from layerif.model.opening import describe, open_model
    from layerif.workflows.compare_experts import ExpertsStudy, compare_experts
    from layerif.workflows.expert_plans import check_plan, expert_plan, names_of

    settings = training.finetune_options(context.params)
    study = ExpertsStudy(settings, tuple(numbers), train_samples, count, seed)
    opened, tokenizer = open_model(
        model, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    names, layers = names_of(options.words(plans)), describe(opened).layers
    for name in names:
        check_plan(name, total, model=opened, options=settings, scored=scores is not None)
    chosen = {
        name: expert_plan(
            name,
            total,
            rank=settings.rank,
            metric=lambda metric: metric_scores(opened, metric, seed=seed),
            influence=influence,
            layers=layers,
        )
        for name in names
    }
    cells = compare_experts(
        out,
        opened,
        tokenizer,
        chosen,
        study,
        task=data,
        options={
            "samples": samples,
            "seed": seed,
            "max_length": max_length,
            "batch_tokens": batch_tokens,
        },
    )
    write_recipe(context, out)
    counted = f"{len(numbers)} seed{'s' if len(numbers) > 1 else ''}"
    title = f"{total} experts trained by several plans, {counted}"
    emit(cells_table(cells, title), cells_value(cells), as_json=as_json)
    for line in cells_lines(out):
        say(line, as_json=as_json)
    say(f"wrote {out}", as_json=as_json)


def cells_table(cells: Mapping[str, Cells], title: str) -> Table:
    """Plans side by side."""
    from layerif.report import seeds_table
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
    from layerif.report import comparison_lines
    from layerif.workflows.compare_experts import COMPARISON_FILE

    return comparison_lines(Comparisons.load(folder / COMPARISON_FILE).comparisons)
