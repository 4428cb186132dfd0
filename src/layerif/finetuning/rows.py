"""Rows to train on: a task's examples, or chunks of running text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from layerif.core import processes
from layerif.data import Corpus, Example
from layerif.data.batching import Encoded
from layerif.data.chunks import cut, draw, usable_length
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError
from layerif.finetuning.options import FinetuneOptions, RowOptions
from layerif.model.checks import check_tokens
from layerif.model.opening import Tokenizer

# Examples, or texts that are tokens already.
Rows = Sequence[Example] | Sequence[Encoded]
# Where nothing is said, at most one chunk in so many is set apart.
ONE_IN = 10


def text_rows(
    model: Any, tokenizer: Tokenizer, corpus: Corpus, wanted: RowOptions, options: FinetuneOptions
) -> tuple[list[Encoded], list[Encoded]]:
    """Chunks of a corpus to train on, and others to measure, of `max_length` tokens each.

    They are of its calibration part, drawn by the seed. Validation takes no more than a tenth of
    them where its number is not given.

    Raises:
        InputError: the text has too few.
    """
    length = usable_length(model, options.max_length)
    chunks = cut(tokenizer, corpus.text("calibration"), length)
    apart = wanted.validation_samples
    if "validation_samples" in wanted.left_out():
        apart = min(apart, len(chunks) // ONE_IN)
    count = len(chunks) - apart if wanted.train_samples is None else wanted.train_samples
    drawn = draw(chunks, apart + max(count, 1), options.seed)
    train, measured = (
        [replace(chunk, index=place) for place, chunk in enumerate(part)]
        for part in (drawn[apart:], drawn[:apart])
    )
    return train, measured


def encoded_rows(
    model: Any,
    tokenizer: Tokenizer,
    train: Rows,
    validation: Rows,
    options: FinetuneOptions,
) -> tuple[list[Encoded], list[Encoded], int]:
    """Training and validation rows as tokens, and how many of both do not fit.

    They are no longer than the model, for which a skeleton will do, has positions for.

    Raises:
        InputError: none fits, one has a token that the model has no embedding for, there is
            patience without validation rows, or a batch has fewer rows than there are processes.
    """
    if options.patience is not None and not validation:
        raise InputError(
            "patience stops training by the loss on validation rows, and there are none; give "
            "some, or leave patience out"
        )
    if options.batch_size < processes.count():
        raise InputError(
            f"a batch of {options.batch_size} rows cannot be divided among {processes.count()} "
            "processes; raise batch_size, or start fewer"
        )
    items = encoded(model, tokenizer, train, options, "training")
    measured = encoded(model, tokenizer, validation, options, "validation") if validation else []
    check_tokens(model, (item.input_ids for item in (*items, *measured)))
    return items, measured, len(train) + len(validation) - len(items) - len(measured)


def encoded(
    model: Any, tokenizer: Tokenizer, rows: Rows, options: FinetuneOptions, what: str
) -> list[Encoded]:
    """Rows as tokens; examples that do not fit are left out.

    Raises:
        InputError: none fits, or a text is longer than the model has positions for.
    """
    length = usable_length(model, options.max_length)
    texts = [row for row in rows if isinstance(row, Encoded)]
    if not texts:
        examples = [row for row in rows if isinstance(row, Example)]
        return encode_samples(tokenizer, examples, length, what, end=options.append_eos)[0]
    if (longest := max(len(text.input_ids) for text in texts)) > length:
        raise InputError(
            f"a {what} text has {longest} tokens, and max_length or the model's positions allow "
            f"{length}; cut it shorter"
        )
    return texts
