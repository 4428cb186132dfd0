"""`layerif metric`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe
from layerif.core.choices import AlphaCompat, DlpStatistic


def metric(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="pl_alpha, outlier_ratio, dlp, block_influence, marginal, adapter_gain, uniform, "
            "random or shuffled.",
            show_default=False,
        ),
    ],
    model: options.Model,
    out: Annotated[
        Path, typer.Option("--out", help="JSON file to write the scores to.", show_default=False)
    ],
    compat: Annotated[
        AlphaCompat | None,
        typer.Option(
            "--compat",
            help="Of pl_alpha: where a tail may begin, as published or as in the authors' code.",
            show_default="corrected",
        ),
    ] = None,
    multiple: Annotated[
        float | None,
        typer.Option("--multiple", help="Of outlier_ratio: times the mean.", show_default="5"),
    ] = None,
    statistic: Annotated[
        DlpStatistic | None,
        typer.Option("--statistic", help="Of dlp: the middle.", show_default="median"),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", help="Of marginal: of every layer.", show_default="0.5"),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="Of adapter_gain: of the LoRA.", show_default="8"),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="Of adapter_gain: of the LoRA.", show_default="16"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Of adapter_gain: one of `layerif tasks`, or a JSONL, CSV or parquet file, in "
            "place of calibration text.",
            show_default=False,
        ),
    ] = None,
    train_samples: options.TrainSamples = 200,
    validation_samples: options.ValidationSamples = 100,
    style: options.Style = "alpaca",
    template_option: options.TemplateOption = None,
    max_length: options.MaxLength = 512,
    of: Annotated[
        str | None,
        typer.Option("--of", help="Of shuffled: whose scores it shuffles.", show_default=False),
    ] = None,
    calibration: options.Calibration = "python-docs",
    samples: options.CalibrationSamples = 32,
    context_length: options.ContextLength = 512,
    batch_tokens: options.BatchTokens = 2048,
    dtype: options.DtypeOption = "float32",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure every decoder layer by a metric other than influence: a baseline, or a control.

    outlier_ratio, dlp and block_influence run calibration text through the dense model, marginal
    through one that is pruned for the time; adapter_gain runs it forward and backward, or samples
    of a task; the others need none. `layerif allocate` takes the file that is written, beside
    which a picture lies.
    """
    from layerif.artifacts import MetricScores
    from layerif.core.checkpoint import check_out

    check_out(out, MetricScores.file_kind(), overwrite=overwrite)
    given = {
        "compat": compat,
        "multiple": multiple,
        "statistic": statistic,
        "sparsity": sparsity,
        "rank": rank,
        "alpha": alpha,
        "of": of,
    }

    from layerif.errors import InputError
    from layerif.metrics.registry import complete_options, reads_model, reads_text, takes_samples

    asked = complete_options(name, {k: v for k, v in given.items() if v is not None})
    corpus = None
    of_task: dict[str, Any] = {}
    if task is not None:
        if not takes_samples(name, asked):
            raise InputError(
                f"the metric {name} takes no samples of a task; leave out --task, or choose "
                "adapter_gain"
            )
        from layerif.data import load_task

        words = options.prompts(style, template_option, model, trust_remote_code=trust_remote_code)
        data = load_task(task, data_dir=data_dir, **words)
        of_task = {
            "task": data,
            "train": data.sample("train", options.rows(context, data, "train"), seed),
            "validation": data.sample(
                "validation", options.rows(context, data, "validation"), seed
            ),
            "max_length": max_length,
        }
    elif reads_text(name, asked):
        from layerif.data import load_corpus

        corpus = load_corpus(calibration, data_dir=data_dir)

    from layerif.model.opening import open_model, open_skeleton
    from layerif.report import leave_picture, metric_table, plot_metric
    from layerif.workflows.stages import measure_into

    tokenizer = None
    if reads_model(name, asked):
        opened, tokenizer = open_model(
            model,
            dtype=dtype,
            device=device,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
    else:
        opened = open_skeleton(model, trust_remote_code=trust_remote_code)
    scores = measure_into(
        out,
        opened,
        tokenizer,
        name,
        calibration=corpus,
        seed=seed,
        text_options={
            "samples": samples,
            "context_length": context_length,
            "batch_tokens": batch_tokens,
        },
        options=asked,
        **of_task,
        overwrite=overwrite,
    )
    write_recipe(context, out)
    leave_picture(plot_metric, scores, beside=out)
    emit(metric_table(scores), scores.model_dump(mode="json"), as_json=as_json)
    say(f"wrote {out}", as_json=as_json)
