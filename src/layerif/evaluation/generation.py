"""Accuracy by generation: does the model write the right candidate answer?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from layerif.artifacts import Measurement
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.progress import progress
from layerif.data.base import Example
from layerif.data.batching import accepted, collate, pack
from layerif.data.chunks import usable_length
from layerif.data.tokenizing import begun, encode_prompts, unframed
from layerif.errors import InputError, NumericalError
from layerif.evaluation.accuracy import two_classes
from layerif.evaluation.extraction import extract_answer, is_settled
from layerif.evaluation.figures import accuracy_figure
from layerif.evaluation.summed import NO_CACHE, Cache
from layerif.model.modes import as_found
from layerif.model.opening import Tokenizer, input_device

# Beyond the longest candidate: a model that was not taught the form of the answers spends some
# words on "The correct answer is", and on the text of its letter.
MARGIN = 8
SHOWN = 5

# Whether the text generated for a prompt, by its index, needs no more.
Settled = Callable[[int, str], bool]


def check_generation(
    model: Any, tokenizer: Tokenizer, examples: Sequence[Example], *, name: str, max_length: int
) -> int:
    """Refuse what cannot be measured by generation; a skeleton model will do.

    Returns:
        The most tokens that are generated after a prompt.

    Raises:
        InputError: no examples, or some without candidate completions, a model that cannot
            generate, or no room for a prompt beside its answer.
    """
    if not examples:
        raise InputError(f"{name} has no examples to measure; give at least one")
    without = sum(not example.choices for example in examples)
    if without:
        raise InputError(
            f"{without} of the {len(examples)} examples of {name} have no candidate completions, "
            "so there is no answer to read in what a model writes; measure them by likelihood"
        )
    if not model.can_generate():
        raise InputError(
            f"{type(model).__name__} cannot generate text; measure {name} by likelihood"
        )
    candidates = sorted({choice for example in examples for choice in example.choices})
    max_new_tokens = max(map(len, unframed(tokenizer, candidates))) + MARGIN
    room = usable_length(model, max_length)
    if room < max_new_tokens + 2:
        raise InputError(
            f"{room} tokens leave no room for a prompt of {name} beside the {max_new_tokens} that "
            "its answer may take; raise max_length, or measure by likelihood where the model has "
            "no more positions"
        )
    return max_new_tokens


def generated_accuracy(
    model: Any,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    name: str = "task",
    max_length: int = 512,
    batch_tokens: int = 2048,
    cache: Cache = NO_CACHE,
) -> Measurement:
    """Share of the examples for which the model writes the right candidate, by greedy decoding.

    What a reply answers is read by `extract_answer`. A reply that cannot be read is not right;
    `details` counts these apart (`parse_failures`, and `parse_failure_rows`), with the accuracy of
    the other rows (`accuracy_of_parsed`, None without any) and the first replies. Where those rows
    all have the same two candidates, it has their `mcc` and `f1`.

    Args:
        max_length: tokens of a prompt and its reply together; too long a prompt loses its left end.
        cache: where replies are looked up and kept.

    Raises:
        InputError: as `check_generation`, or a prompt is empty.
        NumericalError: a logit is not finite; names the example.
    """
    max_new_tokens = check_generation(model, tokenizer, examples, name=name, max_length=max_length)

    prompts = [example.prompt for example in examples]
    limits = {
        "max_new_tokens": max_new_tokens,
        "max_length": max_length,
        "batch_tokens": batch_tokens,
    }

    def compute(steps: Steps) -> dict[str, torch.Tensor]:
        def settled(row: int, text: str) -> bool:
            return is_settled(text, examples[row].choices)

        replies = greedy_replies(
            model, tokenizer, prompts, name=name, settled=settled, steps=steps, **limits
        )
        return {"replies": _padded(replies, max_new_tokens)}

    data = [[ids, e.choices] for ids, e in zip(begun(tokenizer, prompts), examples, strict=True)]
    ends = sorted(_end_tokens(model, tokenizer))
    kept = cache.recall(model, data, compute, what="replies", ends=ends, **limits)
    replies = _unpadded(kept["replies"])
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in replies]
    answers = [extract_answer(t, e.choices) for t, e in zip(texts, examples, strict=True)]
    correct = np.array([a == e.answer for a, e in zip(answers, examples, strict=True)])
    failures = [row for row, answer in enumerate(answers) if answer is None]
    parsed = [row for row, answer in enumerate(answers) if answer is not None]
    details: dict[str, Any] = {
        "parse_failures": len(failures),
        "parse_failure_rows": failures,
        "accuracy_of_parsed": float(correct[parsed].mean()) if parsed else None,
        "chance": float(np.mean([1 / len(example.choices) for example in examples])),
        "max_new_tokens": max_new_tokens,
        "replies": texts[:SHOWN],
    }
    if parsed:
        chosen = np.array([answers[row] for row in parsed])
        details |= two_classes([examples[row] for row in parsed], chosen)
    return accuracy_figure(
        map(astuple, examples), correct, name=name, scoring="generation", details=details
    )


@torch.inference_mode()
def greedy_replies(  # noqa: PLR0913  # texts, limits and when to stop
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    name: str = "task",
    max_new_tokens: int,
    max_length: int = 512,
    batch_tokens: int = 2048,
    settled: Settled = lambda row, text: False,
    steps: Steps = NO_STEPS,
) -> list[list[int]]:
    """The tokens that the model writes after each prompt, always the likeliest.

    A reply ends before a token that ends a text, after `max_new_tokens`, or once it is `settled`.

    Args:
        max_length: tokens of a prompt and `max_new_tokens` together.
        settled: asked of each reply after each of its tokens.
        steps: keeps finished batches.

    Raises:
        InputError: a prompt is empty.
        NumericalError: a logit is not finite.
    """
    room = usable_length(model, max_length) - max_new_tokens
    items = encode_prompts(tokenizer, prompts, room)
    ends = _end_tokens(model, tokenizer)
    device = input_device(model)
    replies: list[list[int]] = [[] for _ in prompts]
    groups = pack(items, batch_tokens, model, growing=max_new_tokens)
    with (
        progress(f"answers on {name}", len(items)) as advance,
        _plainly_greedy(model, max_new_tokens) as settings,
    ):
        for number, group in enumerate(groups):
            rows = [item.index for item in group]
            kept = steps.load(f"batch-{number:06d}")
            if kept is None:
                batch = collate(group, device=device, padding_side="left")
                watch = _Replies(tokenizer, rows, ends, settled)
                finite = _Finite([prompts[row] for row in rows])
                model.generate(
                    **accepted(model.forward, batch.inputs),
                    generation_config=settings,
                    stopping_criteria=StoppingCriteriaList([watch]),
                    logits_processor=LogitsProcessorList([finite]),
                )
                kept = {"replies": _padded(watch.replies, max_new_tokens)}
                steps.save(f"batch-{number:06d}", kept)
            for row, reply in zip(rows, _unpadded(kept["replies"]), strict=True):
                replies[row] = reply
            advance(len(group))
    return replies


def _padded(replies: Sequence[list[int]], width: int) -> torch.Tensor:
    """(rows, width) int64 token ids, -1 after the end of a reply."""
    rows = [[*reply, *[-1] * (width - len(reply))] for reply in replies]
    return torch.tensor(rows, dtype=torch.int64)


def _unpadded(padded: torch.Tensor) -> list[list[int]]:
    return [[token for token in row if token >= 0] for row in padded.tolist()]


class _Replies(StoppingCriteria):
    """Keeps what each row of a batch writes, until the row is done."""

    def __init__(
        self, tokenizer: Tokenizer, rows: Sequence[int], ends: frozenset[int], settled: Settled
    ) -> None:
        self.replies: list[list[int]] = [[] for _ in rows]
        self._done = [False] * len(rows)
        self._tokenizer, self._rows, self._ends, self._settled = tokenizer, rows, ends, settled

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """(B,) bool, true for the rows that are done, from the tokens (B, T) so far."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self._done[row]:
                continue
            reply = self.replies[row]
            self._done[row] = token in self._ends
            if not self._done[row]:
                reply.append(token)
                text = self._tokenizer.decode(reply, skip_special_tokens=True)
                self._done[row] = self._settled(self._rows[row], text)
        return torch.tensor(self._done, device=input_ids.device)


class _Finite(LogitsProcessor):
    """Stops a run whose greatest logits are not finite."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self._prompts = prompts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        finite = scores.amax(-1).isfinite()
        if not finite.all():
            prompt = self._prompts[int((~finite).nonzero()[0])]
            raise NumericalError(
                f"what follows the prompt ending in {prompt[-40:]!r} has likelihoods that are not "
                "finite (try dtype='float32')"
            )
        return scores


@contextmanager
def _plainly_greedy(model: nn.Module, max_new_tokens: int) -> Iterator[GenerationConfig]:
    """Greedy decoding inside, whatever the model's own generation settings; they are put back.

    `generate` fills in from those settings what its arguments leave open, so that a repetition
    penalty or a list of suppressed tokens would be in force: they have to be set aside.
    """
    # Texts end by our own watch: with no end token set, no padding token is needed either.
    plain = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, use_cache=True)
    with as_found(model):
        for module in model.modules():
            if "generation_config" in vars(module):
                module.generation_config = plain
        yield plain


def _end_tokens(model: Any, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a text, by the model's settings or by its tokenizer."""
    found: list[int | None] = []
    for source in (model.generation_config, model.config, tokenizer):
        ends = getattr(source, "eos_token_id", None)
        found += ends if isinstance(ends, list | tuple) else [ends]
    return frozenset(end for end in found if end is not None)
