"""Accuracy on a task: does the model find the right candidate answer the most likely one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from layerif.artifacts import Measurement
from layerif.data.base import Example
from layerif.data.chunks import usable_length
from layerif.data.tokenizing import encode
from layerif.errors import InputError
from layerif.evaluation.figures import accuracy_figure, perplexity_figure
from layerif.evaluation.statistics import f1, matthews
from layerif.evaluation.summed import NO_CACHE, Cache, summed_nats
from layerif.model.opening import Tokenizer


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
    cache: Cache = NO_CACHE,
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
    texts: list[tuple[str, str]] = []
    groups = []  # the texts of each example
    for example in examples:
        candidates = example.candidates()
        groups.append(list(range(len(texts), len(texts) + len(candidates))))
        texts += candidates
    sums, tokens = _log_likelihoods(
        model, tokenizer, texts, name, max_length=max_length, batch_tokens=batch_tokens, cache=cache
    )
    fits = [bool(np.isfinite(sums[group]).all()) for group in groups]
    used = [row for row, fit in enumerate(fits) if fit]
    if not used:
        raise InputError(
            f"no example of {name} fits into {max_length} tokens with its completion; raise "
            "max_length"
        )
    right = [groups[row][examples[row].answer or 0] for row in used]
    nats, counts = -sums[right], tokens[right]
    details: dict[str, Any] = {
        "completion_loss": float((nats / counts).mean()),
        "dropped": [row for row, fit in enumerate(fits) if not fit],
    }
    rows = [astuple(examples[row]) for row in used]
    if not with_choices:
        return perplexity_figure(rows, nats, counts, name=name, details=details)
    answers = np.array([examples[row].answer for row in used])

    def chosen(scores: np.ndarray) -> np.ndarray:
        return np.array([np.argmax(scores[groups[row]]) for row in used])

    per_byte = sums / np.array([len(completion.encode()) for _, completion in texts])
    per_character = sums / np.array([len(text.removeprefix(" ")) or 1 for _, text in texts])
    details |= {
        "accuracy_per_byte": float((chosen(per_byte) == answers).mean()),
        "accuracy_per_character": float((chosen(per_character) == answers).mean()),
        "chance": float(np.mean([1 / len(groups[row]) for row in used])),
        **two_classes([examples[row] for row in used], chosen(sums)),
    }
    return accuracy_figure(rows, chosen(sums) == answers, nats, counts, name=name, details=details)


def two_classes(examples: Sequence[Example], chosen: np.ndarray) -> dict[str, Any]:
    """`mcc`, `f1` and `positive` where all examples have the same two candidates, else nothing."""
    candidates = {example.choices for example in examples}
    if len(candidates) != 1 or len(labels := candidates.pop()) != 2:
        return {}
    answers = np.array([example.answer for example in examples])
    return {"mcc": matthews(chosen, answers), "f1": f1(chosen, answers), "positive": labels[1]}


def _log_likelihoods(
    model: Any,
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, str]],
    name: str,
    *,
    max_length: int,
    batch_tokens: int,
    cache: Cache,
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of log-probabilities of each completion (NaN where it does not fit), and its tokens."""
    items, _ = encode(tokenizer, texts, max_length)

    def name_of(row: int) -> str:
        prompt, completion = texts[items[row].index]
        return f"{completion!r} after the prompt ending in {prompt[-40:]!r}"

    sums = np.full(len(texts), np.nan)
    tokens = np.zeros(len(texts), dtype=np.int64)
    rows = [item.index for item in items]
    tokens[rows] = [item.scored for item in items]
    sums[rows] = -summed_nats(
        model,
        items,
        batch_tokens=batch_tokens,
        doing=f"accuracy on {name}",
        name_of=name_of,
        cache=cache,
    )
    return sums, tokens
