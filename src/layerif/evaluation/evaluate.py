"""Several figures on one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from layerif.artifacts import Measurement, Results
from layerif.core.options import takes
from layerif.data import Corpus, Task
from layerif.data.chunks import check_context_length
from layerif.errors import InputError
from layerif.evaluation.accuracy import have_candidates, task_measurement
from layerif.evaluation.comparison import other_items
from layerif.evaluation.figures import hash_of
from layerif.evaluation.generation import check_generation, generated_accuracy
from layerif.evaluation.options import EvaluateOptions
from layerif.evaluation.perplexity import evaluation_chunks, perplexity
from layerif.evaluation.summed import Cache
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.modes import evaluation_mode
from layerif.model.opening import Tokenizer, describe, setting

# Of the options, what figures depend on.
RECORDED = ("seed", "samples", "scoring", "max_length", "context_length", "max_tokens")


@takes(EvaluateOptions)
def evaluate(
    model: Any,
    tokenizer: Tokenizer,
    on: Sequence[Task | Corpus],
    *,
    options: EvaluateOptions,
    cache: Path | None = None,
) -> Results:
    """Accuracy on the test split of each task, perplexity on the evaluation text of each corpus.

    Args:
        on: tasks and corpora, in the order wanted.
        options: how much of it, and how answers are found; each by keyword too.
        cache: a folder where likelihoods are kept by model and texts, and not computed again; an
            evaluation that was cut short goes on after its last batch. None keeps nothing.

    Raises:
        InputError: as `check_sources`, before the first forward pass; or the decoder layers, whose
            zeros are counted beside the figures, cannot be read (fused experts, tied weights).
        NumericalError: a likelihood is not finite.
    """
    model = unwrapped(model)
    check_sources(model, tokenizer, on, options=options)
    by_likelihood = options.scoring == "likelihood"
    info, sparsity = describe(model), sparsity_of(model)
    known = Cache.of(model, cache)

    def measured(source: Task | Corpus) -> Measurement:
        how: dict[str, Any] = {
            "name": source.name,
            "batch_tokens": options.batch_tokens,
            "cache": known,
        }
        if isinstance(source, Task):
            rows = source.sample("test", options.samples, options.seed)
            measure = task_measurement if by_likelihood else generated_accuracy
            return measure(model, tokenizer, rows, max_length=options.max_length, **how)
        how |= {"context_length": options.context_length, "max_tokens": options.max_tokens}
        return perplexity(model, tokenizer, source.text("evaluation"), **how)

    with evaluation_mode(model):
        measurements = [measured(source) for source in on]
    return Results(
        model=info,
        sparsity=sparsity,
        measurements=measurements,
        how={
            **{name: getattr(options, name) for name in RECORDED},
            "data": {source.name: source.origin for source in on},
        },
        setting=setting(model),
    )


@takes(EvaluateOptions)
def check_sources(
    model: Any,
    tokenizer: Tokenizer,
    on: Sequence[Task | Corpus],
    *,
    options: EvaluateOptions,
) -> None:
    """Find out before the first forward pass what cannot be evaluated; a skeleton model will do.

    Raises:
        InputError: a source is named twice, too few rows, rows of which only some have candidates,
            too short a text, chunks longer than the model's context, or a task that has no answers
            to generate.
    """
    names = [source.name for source in on]
    for name in names:
        # Twice in a family of comparisons, its p-values would be adjusted for more than there are.
        if names.count(name) > 1:
            raise InputError(f"{name} is named twice among what is evaluated; give it once")
    for source in on:
        if isinstance(source, Task):
            rows = source.sample("test", options.samples, options.seed)
            have_candidates(rows, source.name)
            if options.scoring == "generation":
                if source.continues:
                    raise InputError(
                        f"task {source.name} goes on with a text, which has many good "
                        "continuations beside its candidates, so what a model writes cannot be "
                        "marked; measure it by likelihood"
                    )
                check_generation(
                    model, tokenizer, rows, name=source.name, max_length=options.max_length
                )
        else:
            check_context_length(model, options.context_length)
            text = source.text("evaluation")
            evaluation_chunks(tokenizer, text, options.context_length, options.max_tokens)


@takes(EvaluateOptions)
def check_same_items(
    name: str,
    baseline: str,
    reference: Results,
    tokenizer: Tokenizer,
    on: Sequence[Task | Corpus],
    *,
    options: EvaluateOptions,
) -> None:
    """Find out before an evaluation whether it is of the items that a reference was measured on.

    Rows too long for one of two models are left out of its figures alone; that is found afterwards.

    Args:
        name, baseline: what the two are called.
        reference: results to be compared with; what they have no figure of is passed over.
        tokenizer, on, options: of the evaluation.

    Raises:
        InputError: other rows, or other chunks, would be measured.
    """
    for source in on:
        expected = options.scoring if isinstance(source, Task) else "likelihood"
        for known in reference.measurements:
            if (known.name, known.scoring) != (source.name, expected) or known.outcomes is None:
                continue
            items: list[Any]
            if isinstance(source, Task):
                left_out = set(known.details.get("dropped", ()))
                rows = source.sample("test", options.samples, options.seed)
                items = [astuple(row) for i, row in enumerate(rows) if i not in left_out]
            else:
                text = source.text("evaluation")
                chunks = evaluation_chunks(
                    tokenizer, text, options.context_length, options.max_tokens
                )
                items = [chunk.input_ids for chunk in chunks]
            if hash_of(items) != known.outcomes.items:
                raise other_items(name, baseline, known, (len(items), known.outcomes.count))


def sparsity_of(model: Any) -> float:
    """Fraction of zeros in the projections of the decoder layers, counted on the weights.

    Those of an adapter are not counted, and a quantised weight counts as dense: what it stores does
    not show its zeros.
    """
    projections = find_decoder_layers(model).projections
    kept = sum(p.numel if p.packed else int(p.weight.count_nonzero()) for p in projections)
    return 1 - kept / sum(projection.numel for projection in projections)
