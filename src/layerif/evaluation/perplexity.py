"""Perplexity of running text."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerif.artifacts import Measurement
from layerif.data.batching import Encoded
from layerif.data.chunks import check_context_length, cut
from layerif.errors import InputError
from layerif.evaluation.figures import perplexity_figure
from layerif.evaluation.summed import NO_CACHE, Cache, summed_nats
from layerif.model.opening import Tokenizer


def evaluation_chunks(
    tokenizer: Tokenizer, text: str, context_length: int, max_tokens: int | None
) -> list[Encoded]:
    """The chunks that perplexity is measured on: all, or the first that hold `max_tokens`.

    Raises:
        InputError: the text, or `max_tokens`, is shorter than one chunk.
    """
    chunks = cut(tokenizer, text, context_length)
    if max_tokens is None:
        return chunks
    if max_tokens < context_length:
        raise InputError(
            f"{max_tokens} tokens are fewer than one chunk of {context_length}; allow more "
            "tokens, or use a smaller context length"
        )
    return chunks[: max_tokens // context_length]


def perplexity(
    model: Any,
    tokenizer: Tokenizer,
    text: str,
    *,
    name: str = "text",
    context_length: int = 512,
    max_tokens: int | None = None,
    batch_tokens: int = 2048,
    cache: Cache = NO_CACHE,
) -> Measurement:
    """exp of the mean negative log-likelihood of a token, chunk by chunk of `context_length`.

    Its 95 % interval is a bootstrap over chunks (none for a single chunk).

    Args:
        text: the documents, joined.
        name: what the measurement is called.
        max_tokens: use only the first chunks that hold this many tokens.
        cache: where likelihoods are looked up and kept.

    Raises:
        InputError: the text is shorter than a chunk, or a chunk longer than the model's context.
        NumericalError: the likelihood is not finite.
    """
    check_context_length(model, context_length)
    chunks = evaluation_chunks(tokenizer, text, context_length, max_tokens)
    tokens = np.array([chunk.scored for chunk in chunks])
    nats = summed_nats(
        model,
        chunks,
        batch_tokens=batch_tokens,
        doing=f"perplexity on {name}",
        name_of=lambda row: f"chunk {row} of {name}",
        cache=cache,
    )
    mean = float(nats.sum()) / int(tokens.sum())
    return perplexity_figure(
        [chunk.input_ids for chunk in chunks],
        nats,
        tokens,
        name=name,
        details={"context_length": context_length, "chunks": len(chunks), "nats": mean},
    )
