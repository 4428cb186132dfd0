"""`layerif validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from layerif.choices import TruthKind
from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe


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
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.", show_default=False)],
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
    """Measure what pruning each layer really costs, and which score foretells it.

    Each layer is pruned by Wanda, alone (isolated) or with all others pruned too (operating_point),
    and the loss on the calibration text measured. The folder gets the costs, chunk by chunk, the
    table as JSON, and scatter plots. Cut short, the same command goes on where it was.
    """
    from layerif.studies.validation import scores_of, truth_into, truth_paths, write_verdict
    from layerif.tasks import load_corpus

    kinds = [truth] if truth is not None else list(get_args(TruthKind))
    vectors = scores_of([Path(word.strip()) for word in scores.split(",") if word.strip()])
    corpus = load_corpus(calibration, data_dir=data_dir)

    from layerif.model import describe, open_model
    from layerif.report import agreement_table
    from layerif.studies.validation import check_layers
    from layerif.validation import advice, agreements

    opened, tokenizer = open_model(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    check_layers(vectors, describe(opened))
    truths = {
        kind: truth_into(
            path,
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
        for kind, path in truth_paths(out, kinds).items()
    }
    found = {kind: agreements(vectors, each, seed=seed) for kind, each in truths.items()}
    verdict = write_verdict(out, vectors, truths, found)
    write_recipe(context, out)
    emit(agreement_table(found), verdict, as_json=as_json)
    for kind, rows in found.items():
        say(f"{kind}: {advice(rows)}", as_json=as_json)
    say(f"wrote {out}", as_json=as_json)
