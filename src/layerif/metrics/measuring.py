"""Measure the decoder layers of a dense model by a metric."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerif.artifacts import MetricScores, ProjectionScore
from layerif.calibration.text import calibration_batches
from layerif.data import Corpus, Example
from layerif.data.batching import Encoded
from layerif.data.chunks import usable_length
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError, NumericalError
from layerif.metrics.base import MetricValues, Subject
from layerif.metrics.registry import (
    complete_options,
    find,
    involved,
    is_seeded,
    reads_text,
    takes_samples,
)
from layerif.model.layers import DecoderLayers, find_decoder_layers, refuse_quantised, unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import Tokenizer, describe, setting


def metric_scores(
    model: Any,
    metric: str,
    *,
    tokenizer: Tokenizer | None = None,
    calibration: Corpus | str | Sequence[str] | None = None,
    samples: int = 32,
    context_length: int = 512,
    seed: int = 0,
    batch_tokens: int = 2048,
    train: Sequence[Example] = (),
    validation: Sequence[Example] = (),
    max_length: int = 512,
    task: dict[str, Any] | None = None,
    **options: Any,
) -> MetricScores:
    """Measure every decoder layer by a metric; the model stays as it is.

    A metric that needs activations sees them layer after layer, as calibration text makes them in
    the dense model.

    Args:
        model: a causal LM of transformers. Where PEFT has put adapters in it, the weights under
            them are read, with the adapters at work.
        metric: `pl_alpha`, `outlier_ratio`, `dlp`, `block_influence`, `marginal`, `adapter_gain`,
            `uniform`, `random`, `shuffled`, or one's own by `register_metric`.
        tokenizer: the model's tokenizer, for a metric that reads text.
        calibration: a corpus, whose calibration part is used, or text; for such a metric.
        samples, context_length: chunks of calibration text and their length in tokens.
        seed: of the draw of chunks, and of `adapter_gain`, `random` and `shuffled`.
        batch_tokens: tokens run through a layer at once.
        train, validation: samples of a task that `adapter_gain` takes in place of text.
        max_length: tokens kept of a sample.
        task: where the samples come from, for the record.
        options: of the metric: `compat` of pl_alpha, `multiple` of outlier_ratio, `statistic` of
            dlp, `sparsity` and `delta` of marginal, `rank` and `alpha` of adapter_gain, `of` of
            shuffled.

    Raises:
        InputError: no such metric or option, no or too little calibration text, samples for a
            metric that takes none or of one kind alone, a quantised weight, or a model that the
            metric does not serve; says why.
        NumericalError: weights or activations are not finite.
    """
    began = time.perf_counter()
    options = complete_options(metric, options)
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    if any(part.reads_weights for part in involved(metric, options)):
        refuse_quantised(
            layers.projections,
            "and this metric reads weights; measure the model as it was before quantisation, or by "
            "block_influence",
        )
    if seed < 0:
        raise InputError(f"the seed must not be negative, and is {seed}")
    batches, of_task, record = None, None, None
    if train or validation:
        of_task, record = _samples(
            model, tokenizer, metric, options, (train, validation), max_length, task
        )
    elif reads_text(metric, options):
        if tokenizer is None or calibration is None:
            raise InputError(
                f"the metric {metric} reads activations: give a tokenizer and calibration text"
            )
        batches, record = calibration_batches(
            model,
            tokenizer,
            calibration,
            samples=samples,
            context_length=context_length,
            seed=seed,
            batch_tokens=batch_tokens,
        )
    with evaluation_mode(model):
        subject = Subject(layers, seed, model, batches, of_task, batch_tokens)
        values = find(metric).function(subject, **options)
    _check(values, layers, metric)
    projections = None
    if values.projections is not None:
        projections = [
            ProjectionScore(module=p.key, score=float(value), numel=p.numel)
            for p, value in zip(layers.projections, values.projections, strict=True)
        ]
    return MetricScores(
        metric=metric,
        options={**options, "seed": seed} if is_seeded(metric, options) else options,
        scores=[float(value) for value in values.layers],
        projections=projections,
        model=describe(model),
        calibration=record,
        seconds=round(time.perf_counter() - began, 3),
        setting=setting(model),
    )


def _samples(
    model: Any,
    tokenizer: Tokenizer | None,
    metric: str,
    options: dict[str, Any],
    examples: tuple[Sequence[Example], Sequence[Example]],
    max_length: int,
    task: dict[str, Any] | None,
) -> tuple[tuple[list[Encoded], list[Encoded]], dict[str, Any]]:
    """Training and validation samples as tokens, and the record of them."""
    if not takes_samples(metric, options) or tokenizer is None:
        raise InputError(
            f"samples were given to the metric {metric}; right would be a metric that takes them, "
            "such as adapter_gain, with a tokenizer"
        )
    length = usable_length(model, max_length)
    train, validation = (
        encode_samples(tokenizer, own, length, what)[0]
        for own, what in zip(examples, ("training", "validation"), strict=True)
    )
    counts = {"train_samples": len(train), "validation_samples": len(validation)}
    return (train, validation), {"task": task, **counts, "max_length": length}


def _check(values: MetricValues, layers: DecoderLayers, metric: str) -> None:
    """Refuse what is not one finite number a layer, and a projection where there are any."""
    for what, found, count in (
        ("layers", values.layers, len(layers)),
        ("projections", values.projections, len(layers.projections)),
    ):
        if found is None:
            continue
        if np.shape(found) != (count,):
            raise InputError(
                f"the metric {metric} gives values of shape {np.shape(found)} for {count} {what}; "
                f"right would be ({count},)"
            )
        if not np.isfinite(found).all():
            bad = int(np.flatnonzero(~np.isfinite(found))[0])
            name = f"layer {bad}" if what == "layers" else layers.projections[bad].key
            raise NumericalError(f"the metric {metric} is not finite for {name}")
