"""The rows of a training run as tokens, checked."""

from __future__ import annotations

from typing import Any

from layerif.core import processes
from layerif.data.batching import Encoded
from layerif.data.chunks import usable_length
from layerif.data.rows import Rows, encode_rows
from layerif.errors import InputError
from layerif.finetuning.options import FinetuneOptions
from layerif.model.checks import check_tokens
from layerif.model.opening import Tokenizer


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
    return encode_rows(tokenizer, rows, length, what, end=options.append_eos)[0]
