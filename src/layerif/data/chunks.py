"""Running text as chunks of tokens, for calibration and perplexity."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerif.data.batching import Encoded
from layerif.data.tokenizing import around, unframed
from layerif.errors import InputError


def cut(tokenizer: Any, text: str, context_length: int) -> list[Encoded]:
    """Tokenise a text once and cut it into chunks of `context_length` tokens.

    The last, partial chunk is dropped. Every chunk begins as the tokenizer begins a text, with BOS
    say; where the text itself writes such a token it is left out. All tokens of a chunk but the
    first are scored.

    Raises:
        InputError: the text is shorter than one chunk.
    """
    if context_length < 2:
        raise InputError(f"the context length must be at least 2 tokens, not {context_length}")
    begin, _ = around(tokenizer)
    if context_length <= len(begin) + 1:
        raise InputError(
            f"a context of {context_length} tokens has no room beside the {len(begin)} that the "
            "tokenizer puts in front of a text; use a larger context length"
        )
    (ids,) = unframed(tokenizer, [text])
    ids = [token for token in ids if token not in begin] if begin else ids
    body = context_length - len(begin)
    chunks = [ids[i : i + body] for i in range(0, len(ids) - body + 1, body)]
    if not chunks:
        raise InputError(
            f"the text has {len(ids)} tokens, fewer than one chunk of {context_length}; give more "
            "text, or a smaller context length"
        )
    return [Encoded(index, begin + chunk, 1) for index, chunk in enumerate(chunks)]


def draw(chunks: list[Encoded], count: int, seed: int) -> list[Encoded]:
    """`count` chunks without replacement, in an order that depends on the seed alone.

    Raises:
        InputError: there are fewer chunks than that.
    """
    if not 1 <= count <= len(chunks):
        raise InputError(
            f"the text gives {len(chunks)} chunks of {len(chunks[0].input_ids)} tokens, and "
            f"{count} were asked for; ask for 1 to {len(chunks)}, or for shorter ones"
        )
    if seed < 0:
        raise InputError(f"the seed must not be negative, and is {seed}")
    order = np.random.default_rng(seed).permutation(len(chunks))[:count]
    return [chunks[i] for i in order]


def check_context_length(model: Any, context_length: int) -> None:
    """Refuse chunks longer than the model has positions for.

    Raises:
        InputError: they are.
    """
    limit = usable_length(model, context_length)
    if context_length > limit:
        raise InputError(
            f"a context of {context_length} tokens is longer than the {limit} positions of "
            f"{model.config.name_or_path or type(model).__name__}; use at most {limit}"
        )


def usable_length(model: Any, max_length: int) -> int:
    """`max_length`, or the positions that the model has where those are fewer."""
    config = model.config.get_text_config(decoder=True)
    limit: int | None = getattr(config, "max_position_embeddings", None)
    return max_length if limit is None else min(max_length, limit)
