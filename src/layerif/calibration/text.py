"""Calibration text as batches of chunks, and the record of which text it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerif.calibration.sampling import sampled_chunks
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.data import Corpus, SelfText
from layerif.data.batching import Encoded, collate, pack
from layerif.data.chunks import check_context_length, cut, draw
from layerif.model.opening import Tokenizer, input_device

# The step that holds what the model wrote to calibrate on.
SAMPLED = "sampled"


def calibration_batches(
    model: Any,
    tokenizer: Tokenizer,
    calibration: Corpus | SelfText | str | Sequence[str],
    *,
    samples: int,
    context_length: int,
    seed: int,
    batch_tokens: int,
    steps: Steps = NO_STEPS,
) -> tuple[list[dict[str, torch.Tensor]], dict[str, Any]]:
    """Chunks of calibration text, drawn by the seed, as `walk` takes them.

    Args:
        calibration: a corpus, whose calibration part is used, text, or `SelfText()` for text that
            the model samples from itself.
        samples, context_length: how many chunks, and their length in tokens.
        seed: of the draw of chunks, or of their tokens.
        batch_tokens: tokens of a batch.
        steps: keeps what the model samples.

    Returns:
        The inputs of each batch, and samples, length, seed and origin of the text.

    Raises:
        InputError: too little text, or longer chunks than the model has positions for.
    """
    check_context_length(model, context_length)
    origin: dict[str, Any]
    if not isinstance(calibration, SelfText):
        chunks, origin = drawn_chunks(tokenizer, calibration, samples, context_length, seed)
    else:
        origin = {"name": calibration.name, "source": "sampled from the model"}
        if kept := steps.load(SAMPLED):
            chunks = [Encoded(i, row, 1) for i, row in enumerate(kept["tokens"].tolist())]
        else:
            chunks = sampled_chunks(
                model, tokenizer, samples, context_length, seed=seed, batch_tokens=batch_tokens
            )
            # Sampled from the dense model: when a run goes on, its weights are pruned in part.
            steps.save(SAMPLED, {"tokens": torch.tensor([c.input_ids for c in chunks])})
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
