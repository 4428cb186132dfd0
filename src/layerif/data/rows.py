"""Rows to learn from: a task's examples, or chunks of running text, every token of which counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from layerif.data.base import Example
from layerif.data.batching import Encoded
from layerif.data.chunks import cut, draw, usable_length
from layerif.data.corpora import Corpus
from layerif.data.options import Wanted
from layerif.data.tokenizing import encode_samples
from layerif.errors import InputError

# Examples, or texts that are tokens already.
Rows = Sequence[Example] | Sequence[Encoded]
# Where nothing is said, at most one chunk in so many is set apart.
ONE_IN = 10


def text_rows(
    model: Any,
    tokenizer: Any,
    corpus: Corpus,
    wanted: tuple[Wanted, Wanted],
    *,
    max_length: int,
    seed: int,
) -> tuple[list[Encoded], list[Encoded]]:
    """Chunks of a corpus to learn from, and others to measure.

    They are of its calibration part, drawn by the seed.

    Args:
        model: a causal LM; chunks are no longer than it has positions for.
        wanted: how many to learn from, and how many to measure.
        max_length: tokens of each.

    Raises:
        InputError: the text has too few.
    """
    train, validation = wanted
    chunks = cut(tokenizer, corpus.text("calibration"), usable_length(model, max_length))
    apart = validation.count or 0
    if not validation.exactly:
        apart = min(apart, max(validation.least, len(chunks) // ONE_IN))
    count = left = max(len(chunks) - apart, 1)
    if train.count is not None:
        count = train.count if train.exactly else min(train.count, left)
    drawn = draw(chunks, apart + count, seed)
    learnt, measured = (
        [replace(chunk, index=place) for place, chunk in enumerate(part)]
        for part in (drawn[apart:], drawn[:apart])
    )
    return learnt, measured


def encode_rows(
    tokenizer: Any, rows: Rows, max_length: int, what: str, *, end: bool = False
) -> tuple[list[Encoded], list[int]]:
    """Rows as tokens, and the places of examples that do not fit, see `encode_samples`.

    Raises:
        InputError: none fits, or a text is longer.
    """
    texts = [row for row in rows if isinstance(row, Encoded)]
    if not texts:
        examples = [row for row in rows if isinstance(row, Example)]
        return encode_samples(tokenizer, examples, max_length, what, end=end)
    if (longest := max(len(text.input_ids) for text in texts)) > max_length:
        raise InputError(
            f"a {what} text has {longest} tokens, and max_length or the model's positions allow "
            f"{max_length}; cut it shorter"
        )
    return texts, []
