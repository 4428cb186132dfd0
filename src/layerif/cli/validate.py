"""`layerif validate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from layerif.cli import options
from layerif.cli.derived import with_rules
from layerif.cli.replay import finish
from layerif.core.choices import PruningTruth, TruthKind
from layerif.core.options import Rule, Values, words
from layerif.data.options import CalibrationOptions, TaskOptions
from layerif.errors import InputError
from layerif.model.options import PlacedModelOptions
from layerif.validation.options import CapacityOptions, PointOptions

if TYPE_CHECKING:
    from layerif.artifacts import GroundTruth


class CapacityTaskOptions(TaskOptions):
    """What adapters are trained on."""

    task: str | None = None  # type: ignore[assignment]
    """Of capacity: one of `layerif tasks`, or a JSONL, CSV or parquet file."""
    max_length: int = 512
    """Tokens kept of an example; a longer prompt is cut from the left."""


def _of_capacity(values: Values) -> bool:
    return values.get("truth") == "capacity"


@with_rules(
    Rule(
        "task train_samples validation_samples train_steps learning_rate rank alpha max_length",
        _of_capacity,
        "with {truth} capacity",
    ),
    Rule(
        "sparsity calibration calibration_samples context_length",
        lambda v: not _of_capacity(v),
        "with {truth} isolated or operating_point",
    ),
    Rule(
        "delta",
        lambda v: v.get("truth") in (None, "operating_point"),
        "with {truth} operating_point",
    ),
)
def validate(
    context: typer.Context,
    model: PlacedModelOptions,
    scores: Annotated[
        str, typer.Option(help="Run folders and files of scores, with commas between them.")
    ],
    out: options.OutFolder,
    point: PointOptions,
    text: CalibrationOptions,
    training: CapacityOptions,
    task: CapacityTaskOptions,
    samples: options.MoreSampleOptions,
    truth: Annotated[
        TruthKind | None,
        typer.Option(help="One ground truth alone.", show_default="isolated and operating_point"),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure what a change of each layer really does to the loss, and which score predicts it.

    Each layer is pruned by Wanda, alone (isolated) or with all others pruned too (operating_point),
    and the loss on the calibration text measured. Or (capacity, which has to be asked for) each
    layer alone gets adapters that are trained for a few steps on a task, and the fall of the loss
    on its validation rows is measured. The folder gets the figures, text by text, the table as
    JSON, and scatter plots. Interrupted, the same command goes on where it was.
    """
    from layerif.data import load_corpus
    from layerif.validation.ground_truth import check_point
    from layerif.workflows.folder import RunFolder
    from layerif.workflows.validation import (
        capacity_into,
        check_layers,
        scores_of,
        truth_into,
        write_verdict,
    )

    study = RunFolder(out, "validate")
    study.check()
    if (truth == "capacity") != (task.task is not None):
        raise InputError(
            "the ground truth capacity trains on a task, and no other reads one: give both --truth "
            "capacity and --task, or neither"
        )
    vectors = scores_of([Path(word) for word in words(scores)])
    if task.task is not None:
        data = task.load(model.model, trust_remote_code=model.trust_remote_code)
        train = samples.rows(data, "train", point.seed)
        validation = samples.rows(data, "validation", point.seed)
    else:
        # Before the first of the two is measured.
        check_point(point.sparsity, None if truth == "isolated" else point.delta)
        corpus = load_corpus(text.calibration, data_dir=task.data_dir)

    from layerif.model.opening import describe
    from layerif.report.correlation import agreement_table
    from layerif.validation.correlation import advice, agreements

    opened, tokenizer = model.open()
    check_layers(vectors, describe(opened))
    context.with_resource(study.claimed())
    truths: dict[TruthKind, GroundTruth] = {}
    if task.task is not None:
        truths["capacity"] = capacity_into(
            out / "capacity.json",
            opened,
            tokenizer,
            data,
            train=train,
            validation=validation,
            max_length=task.max_length,
            options=training,
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
                    options=point,
                    overwrite=overwrite,
                )
    found = agreements(vectors, truths, seed=point.seed)
    verdict = write_verdict(out, vectors, truths, found)
    lines = [f"{kind}: {advice(rows)}" for kind, rows in found.items()]
    finish(context, out, agreement_table(found), verdict, *lines, as_json=as_json)
