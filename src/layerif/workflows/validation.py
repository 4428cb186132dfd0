"""Ground truths as a stage, never measured twice, and the verdict on scores beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from layerif.artifacts import (
    Agreement,
    GroundTruth,
    LayerScores,
    MetricScores,
    ModelInfo,
    hash_texts,
)
from layerif.core.checkpoint import Steps
from layerif.core.choices import Aggregation, PruningTruth, TruthKind
from layerif.core.files import write_json
from layerif.data import Corpus, Example, Task
from layerif.data.chunks import check_context_length, cut, draw, usable_length
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError
from layerif.model.opening import Tokenizer
from layerif.plans.score_files import read_scores
from layerif.report.correlation import plot_agreement
from layerif.report.plots import leave_picture
from layerif.validation.capacity import capacity
from layerif.validation.correlation import advice
from layerif.validation.ground_truth import isolated, operating_point
from layerif.validation.options import CapacityOptions, PointOptions
from layerif.workflows.stage import fingerprint_of, hash_samples, json_stage

FloatArray = NDArray[np.float64]


def truth_into(
    path: Path,
    model: Any,
    tokenizer: Tokenizer,
    kind: PruningTruth,
    *,
    calibration: Corpus,
    options: PointOptions,
    overwrite: bool = False,
) -> GroundTruth:
    """A ground truth of pruning, saved as JSON; finished layers survive an interruption.

    Raises:
        InputError: as `isolated` and `operating_point`; or the file holds one from different
            settings.
    """
    check_context_length(model, options.context_length)
    text = calibration.text("calibration")
    chunks = cut(tokenizer, text, options.context_length)
    chunks = draw(chunks, options.calibration_samples, options.seed)
    asked: dict[str, Any] = {"kind": kind, **options.recorded()}
    del asked["batch_tokens"]
    if kind != "operating_point":
        del asked["delta"]
    wanted = fingerprint_of(model, hash_texts([text]), asked, tokenizer)
    origin = {"name": calibration.name, **calibration.origin}
    origin |= {"context_length": options.context_length, "seed": options.seed}
    measured: Callable[..., GroundTruth] = isolated
    if kind == "operating_point":
        measured = partial(operating_point, delta=options.delta)

    def measure(steps: Steps) -> GroundTruth:
        batch_tokens = options.batch_tokens
        return measured(
            model, chunks, options.sparsity, batch_tokens=batch_tokens, text=origin, steps=steps
        )

    return json_stage(path, wanted, GroundTruth, measure, overwrite=overwrite)


def capacity_into(  # noqa: PLR0913  # where to, the model, what on, the options
    path: Path,
    model: Any,
    tokenizer: Tokenizer,
    task: Task,
    *,
    train: Sequence[Example],
    validation: Sequence[Example],
    max_length: int,
    options: CapacityOptions,
    overwrite: bool = False,
) -> GroundTruth:
    """The ground truth `capacity` of a task, saved as JSON; finished layers survive.

    Args:
        train, validation: samples of the task.
        max_length: tokens kept of a sample.
        options: of `capacity`.

    Raises:
        InputError: as `capacity`; or the file holds one from different settings.
        NumericalError: as `capacity`.
    """
    asked = {"kind": "capacity", "max_length": max_length, **options.recorded()}
    wanted = fingerprint_of(model, hash_samples(train, validation), asked, tokenizer)

    def measure(steps: Steps) -> GroundTruth:
        length = usable_length(model, max_length)
        samples = [
            encode_samples(tokenizer, examples, length, what)[0]
            for examples, what in ((train, "training"), (validation, "validation"))
        ]
        origin = {"name": task.name, **task.origin, "max_length": length}
        return capacity(model, *samples, options=options, text=origin, steps=steps)

    return json_stage(path, wanted, GroundTruth, measure, overwrite=overwrite)


def scores_of(paths: Sequence[Path]) -> dict[str, FloatArray]:
    """Vectors of one score a layer by their names; every aggregation of influence is one.

    A name is that of the folder or file, or where several are called so the whole path.

    Raises:
        InputError: no path is given, one of them twice, or one of them holds no scores.
    """
    if not paths:
        raise InputError("no scores are named; give run folders or files, with commas between them")
    # A run folder has no suffix, whatever dots its name has; `.` is called as the folder it is.
    names = [path.absolute().name if path.is_dir() else path.stem for path in paths]
    found: dict[str, FloatArray] = {}
    for path, name in zip(paths, names, strict=True):
        if paths.count(path) > 1:
            raise InputError(f"the scores {path} are named twice; give each once")
        scores, title = read_scores(path), name if names.count(name) == 1 else str(path)
        if isinstance(scores, LayerScores):
            found |= {f"{title} {how}": scores.aggregate(how) for how in get_args(Aggregation)}
        else:
            found[title] = np.array(scores.scores) if isinstance(scores, MetricScores) else scores
    return found


def check_layers(vectors: Mapping[str, FloatArray], model: ModelInfo) -> None:
    """Refuse scores of another model before any work.

    Raises:
        InputError: a vector has not one score for each layer.
    """
    for name, vector in vectors.items():
        if len(vector) != model.layers:
            raise InputError(
                f"{name} has {len(vector)} scores, and {model.name} {model.layers} decoder layers; "
                "expected one score a layer"
            )


def write_verdict(
    folder: Path,
    vectors: Mapping[str, FloatArray],
    truths: Mapping[TruthKind, GroundTruth],
    found: Mapping[TruthKind, Sequence[Agreement]],
) -> dict[str, Any]:
    """`validation.json` and one scatter plot a ground truth, in `folder`; what the JSON holds."""
    verdict: dict[str, Any] = {
        kind: {
            "advice": advice(rows),
            "scores": [{**each.model_dump(), "orientation": each.orientation} for each in rows],
        }
        for kind, rows in found.items()
    }
    write_json(folder / "validation.json", verdict)
    for kind, truth in truths.items():
        beside = folder / f"{kind}-scatter"
        leave_picture(plot_agreement, vectors, found[kind], truth, beside=beside)
    return verdict
