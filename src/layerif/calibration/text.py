"""Calibration text as batches of chunks, and the record of which text it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerif.data import Corpus
from layerif.data.batching import Encoded, collate, pack
from layerif.data.chunks import check_context_length, cut, draw
from layerif.model.opening import Tokenizer, input_device


def calibration_batches(
    model: Any,
    tokenizer: Tokenizer,
    calibration: Corpus | str | Sequence[str],
    *,
    samples: int,
    context_length: int,
    seed: int,
    batch_tokens: int,
) -> tuple[list[dict[str, torch.Tensor]], dict[str, Any]]:
    """Chunks of calibration text, drawn by the seed, as `walk` takes them.

    Args:
        calibration: a corpus, whose calibration part is used, or text.
        samples, context_length: how many chunks, and their length in tokens.
        seed: of the draw of chunks.
        batch_tokens: tokens of a batch.

    Returns:
        The inputs of each batch, and samples, length, seed and origin of the text.

    Raises:
        InputError: too little text, or longer chunks than the model has positions for.
    """
    check_context_length(model, context_length)
    chunks, origin = drawn_chunks(tokenizer, calibration, samples, context_length, seed)
    device = input_device(model)
    batches = [collate(items, device=device).inputs for items in pack(chunks, batch_tokens, model)]
    record = {"samples": samples, "context_length": context_length, "seed": seed, "text": origin}
    return batches, record


def drawn_chunks(
    tokenizer: Tokenizer,
    calibration: Corpus | str | Sequence[str],
    samples: int,
    context_length: int,
    seed: int,
) -> tuple[list[Encoded], dict[str, Any]]:
    """Chunks of a corpus' calibration part, or of text, drawn by the seed; and their origin."""
    if isinstance(calibration, Corpus):
        text = calibration.text("calibration")
        origin = {"name": calibration.name, **calibration.origin}
    else:
        text = calibration if isinstance(calibration, str) else "\n\n".join(calibration)
        origin = {"name": "text handed over in memory"}
    return draw(cut(tokenizer, text, context_length), samples, seed), origin
