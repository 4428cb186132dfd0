"""Accuracy on a task: does the model find the right candidate answer the most likely one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch

from layerif.artifacts import Measurement
from layerif.batching import collate, encode, pack
from layerif.chunks import usable_length
from layerif.errors import InputError, NumericalError
from layerif.evaluation.comparison import outcomes_of
from layerif.evaluation.statistics import f1, matthews, perplexity_interval, wilson_interval
from layerif.likelihood import row_sums, token_losses
from layerif.model import Tokenizer
from layerif.progress import progress
from layerif.tasks.base import Example


def have_candidates(examples: Sequence[Example], name: str) -> bool:
    """Whether the examples have candidate answers.

    Raises:
        InputError: some have, and some have not.
    """
    count = sum(example.answer is not None for example in examples)
    if count not in (0, len(examples)):
        raise InputError(
            f"{count} of the {len(examples)} examples of {name} have candidate answers; give them "
            "to all, or to none"
        )
    return count > 0


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
    completion and per character (of what comes after a leading blank: `acc_norm` of
    lm-evaluation-harness), and the mean loss of the right completion, nats per token, which still
    tells models apart where accuracy does not. Where all rows have the same two candidates, it has
    Matthews' correlation (`mcc`), and `f1` of the second candidate, which `positive` names.

    Raises:
        InputError: no example can be used, or only some have candidates.
        NumericalError: a likelihood is not finite; names the example.
    """
    with_choices = have_candidates(examples, name)
    max_length = usable_length(model, max_length)
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
    rows = [astuple(examples[row]) for row in used]
    if not with_choices:
        nats, counts = -sums[right], tokens[right]
        low, high = perplexity_interval(nats, counts) or (None, None)
        return Measurement(
            name=name,
            metric="perplexity",
            value=float(np.exp(nats.sum() / counts.sum())),
            low=low,
            high=high,
            count=int(counts.sum()),
            details=details,
            outcomes=outcomes_of(rows, nats, counts),
        )
    per_byte = sums / np.array([len(completion.encode()) for _, (_, completion) in texts])
    per_character = sums / np.array([len(text.removeprefix(" ")) or 1 for _, (_, text) in texts])
    answers = np.array([examples[row].answer for row in used])
    chosen = np.array([np.argmax(sums[groups[row]]) for row in used])
    correct = chosen == answers
    for unit, scaled in (("byte", per_byte), ("character", per_character)):
        chosen_by = np.array([np.argmax(scaled[groups[row]]) for row in used])
        details[f"accuracy_per_{unit}"] = float((chosen_by == answers).mean())
    details["chance"] = float(np.mean([1 / len(groups[row]) for row in used]))
    candidates = {examples[row].choices for row in used}
    if len(candidates) == 1 and len(labels := candidates.pop()) == 2:
        details["mcc"] = matthews(chosen, answers)
        details["f1"] = f1(chosen, answers)
        details["positive"] = labels[1]
    low, high = wilson_interval(int(correct.sum()), len(used))
    return Measurement(
        name=name,
        metric="accuracy",
        value=float(correct.mean()),
        low=low,
        high=high,
        count=len(used),
        details=details,
        outcomes=outcomes_of(rows, -sums[right], tokens[right], correct),
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
