"""Accuracy on a task: does the model find the right candidate answer the most likely one?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from layerif.artifacts import Measurement
from layerif.batching import collate, encode, pack
from layerif.errors import InputError, NumericalError
from layerif.likelihood import row_sums, token_losses
from layerif.model import Tokenizer
from layerif.progress import progress
from layerif.tasks.base import Example


def task_measurement(
    model: Any,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    name: str = "task",
    max_length: int = 512,
    batch_tokens: int = 2048,
) -> Measurement:
    """Accuracy by likelihood where examples have candidate answers, else perplexity of completions.

    The answer is the candidate with the greatest sum of log-probabilities of its completion given
    its prompt (the first of equals); `details` has the accuracy by log-probability per byte of the
    completion too, and the mean loss of the right completion, nats per token, which still tells
    models apart where accuracy does not.

    Raises:
        InputError: no example can be used, or only some have candidates.
        NumericalError: a likelihood is not finite; names the example.
    """
    with_choices = sum(example.answer is not None for example in examples)
    if with_choices not in (0, len(examples)):
        raise InputError(
            f"{with_choices} of the {len(examples)} examples of {name} have candidate answers; "
            "give them to all, or to none"
        )
    texts = [
        (row, candidate)
        for row, example in enumerate(examples)
        for candidate in example.candidates()
    ]
    sums, tokens = _log_likelihoods(
        model,
        tokenizer,
        [candidate for _, candidate in texts],
        name=name,
        max_length=max_length,
        batch_tokens=batch_tokens,
    )
    groups: list[list[int]] = [[] for _ in examples]
    for index, (row, _) in enumerate(texts):
        groups[row].append(index)
    used = [row for row, group in enumerate(groups) if np.isfinite(sums[group]).all()]
    if not used:
        raise InputError(
            f"no example of {name} fits into {max_length} tokens with its completion; raise "
            "--max-length"
        )
    right = [groups[row][examples[row].answer or 0] for row in used]
    losses = -sums[right] / tokens[right]
    details: dict[str, Any] = {
        "completion_loss": float(losses.mean()),
        "dropped": [row for row in range(len(examples)) if row not in set(used)],
    }
    if not with_choices:
        nats = float(-sums[right].sum() / tokens[right].sum())
        return Measurement(
            name=name,
            metric="perplexity",
            value=math.exp(nats),
            count=int(tokens[right].sum()),
            details=details,
        )
    sizes = np.array([len(completion.encode()) for _, (_, completion) in texts])
    hits = sum(int(np.argmax(sums[groups[r]])) == examples[r].answer for r in used)
    per_byte = sums / sizes
    details["accuracy_per_byte"] = float(
        np.mean([int(np.argmax(per_byte[groups[r]])) == examples[r].answer for r in used])
    )
    details["chance"] = float(np.mean([1 / len(groups[r]) for r in used]))
    low, high = wilson_interval(hits, len(used))
    return Measurement(
        name=name,
        metric="accuracy",
        value=hits / len(used),
        low=low,
        high=high,
        count=len(used),
        details=details,
    )


@torch.inference_mode()
def _log_likelihoods(
    model: Any,
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, str]],
    *,
    name: str,
    max_length: int,
    batch_tokens: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of log-probabilities of each completion (NaN where it does not fit), and its tokens."""
    items, _ = encode(tokenizer, texts, max_length)
    sums = np.full(len(texts), np.nan)
    tokens = np.zeros(len(texts), dtype=np.int64)
    device = next(model.parameters()).device
    with progress(f"accuracy on {name}", sum(len(i.input_ids) for i in items)) as advance:
        for group in pack(items, batch_tokens):
            batch = collate(group, device=device)
            losses = row_sums(token_losses(model, batch).double(), batch).cpu().numpy()
            for item, loss in zip(group, losses, strict=True):
                if not np.isfinite(loss):
                    prompt, completion = texts[item.index]
                    raise NumericalError(
                        f"the likelihood of {completion!r} after the prompt ending in "
                        f"{prompt[-40:]!r} is not finite (try --dtype float32)"
                    )
                sums[item.index] = -loss
                tokens[item.index] = item.scored
            advance(batch.tokens)
    return sums, tokens


def wilson_interval(hits: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a proportion (E. B. Wilson, JASA 22, 1927)."""
    share = hits / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
