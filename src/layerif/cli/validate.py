"""`layerif validate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe
from layerif.core.choices import PruningTruth, TruthKind

if TYPE_CHECKING:
    from layerif.artifacts import GroundTruth


def validate(
    context: typer.Context,
    model: options.Model,
    scores: Annotated[
        str,
        typer.Option(
            "--scores",
            help="Run folders and files of scores, with commas between them.",
            show_default=False,
        ),
    ],
    out: options.OutFolder,
    truth: Annotated[
        TruthKind | None,
        typer.Option(
            "--truth", help="One ground truth alone.", show_default="isolated and operating_point"
        ),
    ] = None,
    sparsity: Annotated[
        float, typer.Option("--sparsity", help="Of the layers that are pruned.")
    ] = 0.5,
    delta: Annotated[
        float, typer.Option("--delta", help="By how much a layer moves at the operating point.")
    ] = 0.05,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Of capacity: one of `layerif tasks`, or a JSONL, CSV or parquet file.",
            show_default=False,
        ),
    ] = None,
    train_samples: options.TrainSamples = 200,
    validation_samples: options.ValidationSamples = 100,
    steps: Annotated[
        int, typer.Option("--steps", help="Of capacity: steps of training in each layer.")
    ] = 20,
    rate: Annotated[float, typer.Option("--rate", help="Of capacity: the first step's.")] = 1e-3,
    rank: Annotated[int, typer.Option("--rank", help="Of capacity: of the adapters.")] = 8,
    alpha: Annotated[float, typer.Option("--alpha", help="Of capacity: of the adapters.")] = 16.0,
    style: options.Style = "alpaca",
    template_option: options.TemplateOption = None,
    max_length: options.MaxLength = 512,
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
    """Measure what a change of each layer really does to the loss, and which score foretells it.

    Each layer is pruned by Wanda, alone (isolated) or with all others pruned too (operating_point),
    and the loss on the calibration text measured. Or (capacity, which has to be asked for) each
    layer alone gets adapters that are trained for a few steps on a task, and the fall of the loss
    on its validation rows is measured. The folder gets the figures, text by text, the table as
    JSON, and scatter plots. Cut short, the same command goes on where it was.
    """
    from layerif.data import load_corpus, load_task
    from layerif.errors import InputError
    from layerif.validation.ground_truth import check_point
    from layerif.workflows.folder import RunFolder
    from layerif.workflows.validation import (
        capacity_into,
        scores_of,
        truth_into,
        write_verdict,
    )

    study = RunFolder(out, "validate")
    study.check()

    if (truth == "capacity") != (task is not None):
        raise InputError(
            "the ground truth capacity trains on a task, and no other reads one: give both --truth "
            "capacity and --task, or neither"
        )
    vectors = scores_of([Path(word) for word in options.words(scores)])
    if task is not None:
        words = options.prompts(style, template_option, model, trust_remote_code=trust_remote_code)
        data = load_task(task, data_dir=data_dir, **words)
        train = data.sample("train", options.rows(context, data, "train"), seed)
        validation = data.sample("validation", options.rows(context, data, "validation"), seed)
    else:
        # Before the first of the two is measured.
        check_point(sparsity, None if truth == "isolated" else delta)
        corpus = load_corpus(calibration, data_dir=data_dir)

    from layerif.model.opening import describe, open_model
    from layerif.report import agreement_table
    from layerif.validation.correlation import advice, agreements
    from layerif.workflows.validation import check_layers

    opened, tokenizer = open_model(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    check_layers(vectors, describe(opened))
    context.with_resource(study.claimed())
    truths: dict[TruthKind, GroundTruth] = {}
    if task is not None:
        truths["capacity"] = capacity_into(
            out / "capacity.json",
            opened,
            tokenizer,
            data,
            train=train,
            validation=validation,
            max_length=max_length,
            options={
                "rank": rank,
                "alpha": alpha,
                "train_steps": steps,
                "rate": rate,
                "batch_tokens": batch_tokens,
                "seed": seed,
            },
            overwrite=overwrite,
        )
    else:
        for kind in get_args(PruningTruth):
            if truth in (None, kind):
                truths[kind] = truth_into(
                    out / f"{kind}.json",
                    opened,
                    tokenizer,
                    kind,
                    calibration=corpus,
                    sparsity=sparsity,
                    delta=delta,
                    samples=samples,
                    context_length=context_length,
                    batch_tokens=batch_tokens,
                    seed=seed,
                    overwrite=overwrite,
                )
    found = agreements(vectors, truths, seed=seed)
    verdict = write_verdict(out, vectors, truths, found)
    write_recipe(context, out)
    emit(agreement_table(found), verdict, as_json=as_json)
    for kind, rows in found.items():
        say(f"{kind}: {advice(rows)}", as_json=as_json)
    say(f"wrote {out}", as_json=as_json)
