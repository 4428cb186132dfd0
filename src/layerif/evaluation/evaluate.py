"""Several figures on one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerif.artifacts import Measurement, Results
from layerif.chunks import check_context_length
from layerif.evaluation.accuracy import have_candidates, task_measurement
from layerif.evaluation.perplexity import evaluation_chunks, perplexity
from layerif.model import Tokenizer, describe, evaluation_mode, find_decoder_layers, setting
from layerif.tasks import Corpus, Task


def evaluate(
    model: Any,
    tokenizer: Tokenizer,
    on: Sequence[Task | Corpus],
    *,
    samples: int | None = None,
    seed: int = 0,
    max_length: int = 512,
    context_length: int = 512,
    max_tokens: int | None = None,
    batch_tokens: int = 2048,
) -> Results:
    """Accuracy on the test split of each task, perplexity on the evaluation text of each corpus.

    Args:
        on: tasks and corpora, in the order wanted.
        samples: test rows of each task, drawn with `seed`; None takes all.
        max_length: tokens kept of a row.
        context_length: tokens of a chunk of a corpus.
        max_tokens: tokens used of a corpus; None takes all.

    Raises:
        InputError: as `check_sources`, before the first forward pass; or the decoder layers, whose
            zeros are counted beside the figures, cannot be read (fused experts, tied weights).
        NumericalError: a likelihood is not finite.
    """
    check_sources(
        model,
        tokenizer,
        on,
        samples=samples,
        seed=seed,
        context_length=context_length,
        max_tokens=max_tokens,
    )
    info, sparsity = describe(model), sparsity_of(model)
    measurements: list[Measurement] = []
    with evaluation_mode(model):
        for source in on:
            if isinstance(source, Task):
                measurement = task_measurement(
                    model,
                    tokenizer,
                    source.sample("test", samples, seed),
                    name=source.name,
                    max_length=max_length,
                    batch_tokens=batch_tokens,
                )
            else:
                measurement = perplexity(
                    model,
                    tokenizer,
                    source.text("evaluation"),
                    name=source.name,
                    context_length=context_length,
                    max_tokens=max_tokens,
                    batch_tokens=batch_tokens,
                )
            measurements.append(measurement)
    return Results(
        model=info,
        sparsity=sparsity,
        measurements=measurements,
        how={
            "seed": seed,
            "samples": samples,
            "max_length": max_length,
            "context_length": context_length,
            "max_tokens": max_tokens,
            "data": {source.name: source.origin for source in on},
        },
        setting=setting(model),
    )


def check_sources(
    model: Any,
    tokenizer: Tokenizer,
    on: Sequence[Task | Corpus],
    *,
    samples: int | None,
    seed: int,
    context_length: int,
    max_tokens: int | None,
) -> None:
    """Find out before the first forward pass what cannot be evaluated; a skeleton model will do.

    Raises:
        InputError: too few rows, rows of which only some have candidates, too short a text, or
            chunks longer than the model's context.
    """
    for source in on:
        if isinstance(source, Task):
            have_candidates(source.sample("test", samples, seed), source.name)
        else:
            check_context_length(model, context_length)
            evaluation_chunks(tokenizer, source.text("evaluation"), context_length, max_tokens)


def sparsity_of(model: Any) -> float:
    """Fraction of zeros in the projections of the decoder layers, counted on the weights."""
    projections = find_decoder_layers(model).projections
    kept = sum(int(projection.weight.count_nonzero()) for projection in projections)
    return 1 - kept / sum(projection.numel for projection in projections)
