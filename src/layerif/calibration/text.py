"""Calibration text in chunks, of a corpus or written by the model, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.progress import progress
from layerif.data import Corpus, SelfText
from layerif.data.batching import Encoded, collate, pack, rope_borders
from layerif.data.chunks import check_context_length, cut, draw
from layerif.data.tokenizing import around
from layerif.errors import InputError, NumericalError
from layerif.model.modes import evaluation_mode
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


@torch.no_grad()
def sampled_chunks(
    model: Any,
    tokenizer: Tokenizer,
    count: int,
    context_length: int,
    *,
    seed: int,
    batch_tokens: int = 2048,
) -> list[Encoded]:
    """Chunks of tokens drawn from the model's own distribution, at temperature 1.

    Each begins as the tokenizer begins a text (with BOS, say), or with a token drawn from the
    vocabulary. An end of text is a token like any other. Every chunk has its own draws, by seed and
    index, so the first k chunks of n are those of k. The next token is that of the largest sum of
    logit and Gumbel noise, which is a draw from the softmax.

    Args:
        count: how many.
        context_length: tokens of each, at least 2.
        batch_tokens: tokens held at once.

    Raises:
        InputError: numbers out of range.
        NumericalError: a logit is not finite.
    """
    if count < 1 or context_length < 2 or seed < 0:
        raise InputError(
            f"{count} chunks of {context_length} tokens by seed {seed} cannot be sampled; ask for "
            "at least one chunk, of at least 2 tokens, and a seed from 0 up"
        )
    begin, _ = around(tokenizer)
    special = set(tokenizer.all_special_ids)
    size = min(len(tokenizer), model.get_input_embeddings().num_embeddings)
    plain = [token for token in range(size) if token not in special]
    rows = max(1, batch_tokens // context_length)
    chunks: list[Encoded] = []
    with evaluation_mode(model), progress("sampling text", count) as advance:
        for first in range(0, count, rows):
            indices = range(first, min(first + rows, count))
            draws = [np.random.default_rng([seed, index]) for index in indices]
            starts = [begin or [int(draw.choice(plain))] for draw in draws]
            tokens = _continued(model, starts, draws, context_length, len(tokenizer))
            chunks += [
                Encoded(index, ids, 1) for index, ids in zip(indices, tokens.tolist(), strict=True)
            ]
            advance(len(indices))
    return chunks


def _continued(
    model: Any,
    starts: list[list[int]],
    draws: list[np.random.Generator],
    length: int,
    vocabulary: int,
) -> torch.Tensor:
    """(rows, length) tokens, each row going on from its start by its own draws."""
    device = input_device(model)
    tokens = torch.tensor(starts, device=device)
    cache, borders = None, rope_borders(model)
    while tokens.shape[1] < length:
        if tokens.shape[1] - 1 in borders:
            cache = None  # its keys were turned by the other frequencies
        output = model(
            input_ids=tokens if cache is None else tokens[:, -1:],
            attention_mask=torch.ones_like(tokens),
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        # Rows of the embedding that belong to no token are never drawn.
        logits = output.logits[:, -1, :vocabulary].double()
        if not logits.isfinite().all():
            raise NumericalError(
                "the model gives tokens likelihoods that are not finite as it writes text; try "
                "dtype='float32'"
            )
        noise = np.stack([draw.gumbel(size=logits.shape[1]) for draw in draws])
        following = (logits + torch.from_numpy(noise).to(logits.device)).argmax(1)
        tokens = torch.cat([tokens, following.to(device)[:, None]], dim=1)
    return tokens
