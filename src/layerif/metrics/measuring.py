"""Measure the decoder layers of a dense model by a metric."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerif.artifacts import MetricScores, ProjectionScore
from layerif.calibration.text import calibration_batches
from layerif.core.options import takes
from layerif.data import Corpus, Example
from layerif.data.chunks import usable_length
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError, NumericalError
from layerif.metrics.base import MetricValues, Subject
from layerif.metrics.options import MeasureOptions
from layerif.metrics.registry import (
    METRICS,
    complete_options,
    involved,
    is_seeded,
    reads_text,
    takes_samples,
)
from layerif.model.layers import DecoderLayers, find_decoder_layers, refuse_quantised, unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import Tokenizer, describe, setting


@takes(MeasureOptions)
def metric_scores(
    model: Any,
    metric: str,
    *,
    options: MeasureOptions,
    tokenizer: Tokenizer | None = None,
    calibration: Corpus | str | Sequence[str] | None = None,
    train: Sequence[Example] = (),
    validation: Sequence[Example] = (),
    task: dict[str, Any] | None = None,
    **of_metric: Any,
) -> MetricScores:
    """Measure every decoder layer by a metric; the model stays as it is.

    A metric that needs activations sees them layer after layer, as calibration text makes them in
    the dense model.

    Args:
        model: a causal LM of transformers. Where PEFT has put adapters in it, the weights under
            them are read, with the adapters active.
        metric: `pl_alpha`, `outlier_ratio`, `dlp`, `block_influence`, `drop_cost`, `taylor`,
            `marginal`, `quadratic`, `adapter_gain`, `uniform`, `random`, `rule_of_thumb`,
            `shuffled`, or a name given by `register_metric`.
        tokenizer: the model's tokenizer, for a metric that reads text.
        calibration: a corpus, whose calibration part is used, or text; for such a metric.
        options: how much of it is read, and the seed; each by keyword too.
        train, validation: samples of a task, which `adapter_gain` and `quadratic` take in place of
            text.
        task: where the samples come from, for the record.
        of_metric: options of the metric: `compat` of pl_alpha, `multiple` of outlier_ratio,
            `statistic` of dlp, `sparsity` and `delta` of marginal, `of_kind`, `level`, `method`,
            `criterion` and `group_size` of quadratic, `rank` and `alpha` of
            adapter_gain, `of` of shuffled.

    Raises:
        InputError: no such metric or option, no or too little calibration text, samples for a
            metric that takes none or of one kind alone, a quantised weight, or a model that the
            metric does not apply to; says why.
        NumericalError: weights or activations are not finite.
    """
    began = time.perf_counter()
    of_metric = complete_options(metric, of_metric)
    model = unwrapped(model)
    layers = find_decoder_layers(model)
    if any(part.reads_weights for part in involved(metric, of_metric)):
        refuse_quantised(
            layers.projections,
            "and this metric reads weights; measure the model as it was before quantisation, or by "
            "block_influence",
        )
    batches, of_task, record = None, None, None
    if train or validation:
        if not takes_samples(metric, of_metric) or tokenizer is None:
            raise InputError(
                f"samples were given to the metric {metric}; expected a metric that takes them, "
                "such as adapter_gain, and a tokenizer"
            )
        length = usable_length(model, options.max_length)
        own, _ = encode_samples(tokenizer, train, length, "training")
        held_out, _ = encode_samples(tokenizer, validation, length, "validation")
        counts = {"train_samples": len(own), "validation_samples": len(held_out)}
        of_task, record = (own, held_out), {"task": task, **counts, "max_length": length}
    elif reads_text(metric, of_metric):
        if tokenizer is None or calibration is None:
            raise InputError(
                f"the metric {metric} reads activations: give a tokenizer and calibration text"
            )
        batches, record = calibration_batches(
            model,
            tokenizer,
            calibration,
            samples=options.calibration_samples,
            context_length=options.context_length,
            seed=options.seed,
            batch_tokens=options.batch_tokens,
        )
    with evaluation_mode(model):
        subject = Subject(layers, options.seed, model, batches, of_task, options.batch_tokens)
        values = METRICS.find(metric).function(subject, **of_metric)
    _check(values, layers, metric)
    projections = None
    if values.projections is not None:
        projections = [
            ProjectionScore(module=p.key, score=float(value), numel=p.numel)
            for p, value in zip(layers.projections, values.projections, strict=True)
        ]
    seeded = is_seeded(metric, of_metric)
    return MetricScores(
        metric=metric,
        options={**of_metric, "seed": options.seed} if seeded else of_metric,
        scores=[float(value) for value in values.layers],
        projections=projections,
        model=describe(model),
        calibration=record,
        seconds=round(time.perf_counter() - began, 3),
        setting=setting(model),
    )


def _check(values: MetricValues, layers: DecoderLayers, metric: str) -> None:
    """Refuse what is not one finite number a layer, and a projection where there are any."""
    for what, found, names in (
        ("layers", values.layers, [f"layer {index}" for index in range(len(layers))]),
        ("projections", values.projections, [p.key for p in layers.projections]),
    ):
        if found is None:
            continue
        if np.shape(found) != (len(names),):
            raise InputError(
                f"the metric {metric} gives values of shape {np.shape(found)} for {len(names)} "
                f"{what}; expected ({len(names)},)"
            )
        if len(bad := np.flatnonzero(~np.isfinite(found))):
            raise NumericalError(f"the metric {metric} is not finite for {names[bad[0]]}")
