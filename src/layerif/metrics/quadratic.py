"""The quadratic question as a metric: what a level of compression would cost in each place."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from layerif.compress.registry import COMPRESSORS
from layerif.core.options import Options, Rule
from layerif.data.batching import collate, pack
from layerif.errors import InputError
from layerif.metrics.base import Metric, MetricValues, Subject
from layerif.model.opening import input_device
from layerif.plans.maps.bits import LEVELS
from layerif.plans.maps.stored import WHOLE
from layerif.search.options import BitsSearchOptions, Criterion, QuestionKind, SearchOptions
from layerif.search.quadratic import expansion


class QuadraticOptions(Options):
    """Options of quadratic."""

    title = "Metric"
    rules = (Rule("group_size", lambda v: v["of_kind"] == "bits", "with {of_kind} bits"),)

    of_kind: QuestionKind = "sparsity"
    """What the level is of."""
    level: Annotated[float, Field(gt=0, le=8)] = 0.5
    """Sparsity, or bits, of every projection."""
    method: str | None = None
    """Pruner or quantiser; wanda or rtn unless given."""
    criterion: Criterion = "diagonal"
    """Second order with outputs one by one (diagonal) or each token as a whole (token), first
    order (first), or the outputs' error (local)."""
    group_size: int = 128
    """Inputs that share a scale."""


def quadratic(
    subject: Subject,
    *,
    of_kind: QuestionKind,
    level: float,
    method: str | None,
    criterion: Criterion,
    group_size: int,
) -> MetricValues:
    """Predicted change of the loss if a projection alone were pruned or quantised to a level.

    Args:
        subject: the dense model, with calibration text; or with samples of a task, whose training
            samples are then what statistics and the loss are taken on.
        of_kind, level: a sparsity below 1, or whole bits.
        method: pruner or quantiser.
        criterion: what counts, see `Expansion`.
        group_size: of the quantiser.

    Returns:
        Nats a token, for a layer the sum over its projections. High: the layer should keep more.

    Raises:
        InputError: no such method, or a level that the kind does not have.
        NumericalError: a loss or a value is not finite.
    """
    projections = subject.layers.projections
    if of_kind == "sparsity":
        if level >= 1:
            raise InputError(f"level={level:g} is no sparsity; expected a number below 1")
        options: SearchOptions | BitsSearchOptions = SearchOptions(method=method or "wanda")
        untouched, asked = 0, [round(level * p.numel) for p in projections]
    else:
        if level not in LEVELS:
            raise InputError(f"level={level:g} is no number of bits; expected 2 to 8")
        options = BitsSearchOptions(method=method or "rtn", group_size=group_size)
        untouched, asked = WHOLE, [int(level)] * len(projections)
    if subject.of_task:
        items, _ = subject.samples
        groups = pack(items, subject.batch_tokens, subject.model)
        batches = [collate(group, device=input_device(subject.model)).inputs for group in groups]
    else:
        items, batches = subject.texts, list(subject.batches)
    with COMPRESSORS.find(of_kind)(subject.model, subject.layers, batches, options) as compressor:
        changes = compressor.at(
            [untouched] * len(projections), lambda row, unit: [unit.change(untouched, asked[row])]
        )
        found = expansion(subject.model, changes, items, batch_tokens=subject.batch_tokens)
    values = getattr(found, criterion)[:, 0]
    owners = [p.layer for p in projections]
    layers = np.bincount(owners, weights=values, minlength=len(subject.layers))
    return MetricValues(layers.astype(np.float64), values)


QUADRATIC = Metric(quadratic, QuadraticOptions, reads_text=True, takes_samples=True)
