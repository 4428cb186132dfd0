"""What a text becomes: every token that a model is given comes from here.

- **Begun once.** The tokens that a tokenizer puts in front of every text (BOS, or [CLS], or two of
  them) begin it; a text that writes the first of them itself is given none that it has.
- **Never ended unasked.** What a tokenizer puts behind every text (EOS, [SEP]) is left out: a
  candidate is scored without it, and nothing would follow it. Training rows end with EOS, once.
- **Running text** is cut into chunks that each begin so; where it writes these tokens itself they
  are left out (`layerif.data.chunks`).
- **Special tokens written in a text** are those tokens, and not the characters of their names.

Prompt and completion are tokenised as one text, and the tokenizer need not tell offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerif.core.progress import note
from layerif.data.base import Example
from layerif.data.batching import Encoded
from layerif.errors import InputError


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts in front of every text, and those that it puts behind."""
    for probe in ("a", "0", ".", " "):
        plain = tokenizer(probe, add_special_tokens=False)["input_ids"]
        whole = tokenizer(probe)["input_ids"]
        for place in range(len(whole) - len(plain) + 1):
            if plain and whole[place : place + len(plain)] == plain:
                return whole[:place], whole[place + len(plain) :]
    return [], []


def unframed(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts alone, with none put around them."""
    if not texts:
        return []
    encodings = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    ids: list[list[int]] = encodings["input_ids"]
    return ids


def begun(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts that may go on: begun as the tokenizer begins a text, and not ended."""
    front, _ = around(tokenizer)
    return [_lead(front, ids) + ids for ids in unframed(tokenizer, texts)]


def encode(
    tokenizer: Any, texts: Sequence[tuple[str, str]], max_length: int, *, end: bool = False
) -> tuple[list[Encoded], list[int]]:
    """Tokenise (prompt, completion) pairs, each pair as one text.

    A token that spans the border belongs to the completion. Too long a text loses its prompt from
    the left (what begins every text stays), never its completion.

    Args:
        max_length: tokens kept of a text.
        end: put EOS behind completions that do not end with it themselves, white space aside.

    Returns:
        The encoded texts, and the indices of those left out, because their completion does not fit
        beside one token of context or has no token that anything predicts.
    """
    if not texts:
        return [], []
    joined = [prompt + completion for prompt, completion in texts]
    front, _ = around(tokenizer)
    encodings = tokenizer(
        joined,
        add_special_tokens=False,
        return_offsets_mapping=bool(tokenizer.is_fast),
        verbose=False,
    )
    special = set(tokenizer.all_special_ids)
    encoded, dropped = [], []
    for index, (prompt, completion) in enumerate(texts):
        ids = encodings["input_ids"][index]
        if tokenizer.is_fast:
            ends = (end for _, end in encodings["offset_mapping"][index])
            start = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
        else:
            (alone,) = unframed(tokenizer, [prompt])
            pairs = enumerate(zip(alone, ids, strict=False))
            start = next((i for i, (a, b) in pairs if a != b), min(len(alone), len(ids)))
        lead = _lead(front, ids)
        ids = lead + ids
        if end and tokenizer.eos_token is not None:
            ended = completion.rstrip().endswith(tokenizer.eos_token)
            ids = ids if ended else [*ids, tokenizer.eos_token_id]
        scored = len(ids) - max(start + len(lead), 1)
        if scored < 1 or scored >= max_length:
            dropped.append(index)
            continue
        kept = _shortened(ids, max_length, special, front)
        encoded.append(Encoded(index, kept, len(kept) - scored))
    return encoded, dropped


def encode_samples(
    tokenizer: Any, samples: Sequence[Example], max_length: int, what: str, *, end: bool = False
) -> tuple[list[Encoded], list[int]]:
    """As `encode`, of samples with their completions; those that do not fit are noted.

    Args:
        what: the kind of samples, for messages.

    Raises:
        InputError: none fits, or there are none.
    """
    texts = [(sample.prompt, sample.completion) for sample in samples]
    items, dropped = encode(tokenizer, texts, max_length, end=end)
    if not items:
        raise InputError(
            f"none of the {len(texts)} {what} samples has a completion that fits into "
            f"{max_length} tokens beside one token of prompt; raise max_length, or shorten the "
            "completions"
            if texts
            else f"there are no {what} samples; at least one is needed"
        )
    if dropped:
        note(
            f"{len(dropped)} of {len(texts)} {what} samples left out: their completion does "
            f"not fit into {max_length} tokens"
        )
    return items, dropped


def encode_prompts(tokenizer: Any, prompts: Sequence[str], max_length: int) -> list[Encoded]:
    """Tokenise prompts for a model to go on from; none of their tokens is scored.

    Too long a prompt loses tokens from the left (what begins every text stays).

    Args:
        max_length: tokens kept of a prompt, at least 2.

    Raises:
        InputError: a prompt has no token to go on from.
    """
    special, (front, _) = set(tokenizer.all_special_ids), around(tokenizer)
    encoded = []
    for index, ids in enumerate(begun(tokenizer, prompts)):
        kept = _shortened(ids, max_length, special, front)
        if not kept:
            raise InputError(
                f"prompt {index} is empty, and the tokenizer puts no token before a text that a "
                "model could go on from; give every row a prompt"
            )
        encoded.append(Encoded(index, kept, len(kept)))
    return encoded


def _lead(front: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Of the tokens that begin every text those that a text does not write itself."""
    own = front.index(ids[0]) if ids and ids[0] in front else len(front)
    return list(front[:own])


def _shortened(
    ids: list[int], max_length: int, special: set[int], front: Sequence[int]
) -> list[int]:
    """The last `max_length` tokens, among them what begins every text, or one special token."""
    if len(ids) <= max_length:
        return ids
    begins = len(front) if front and ids[: len(front)] == list(front) else int(ids[0] in special)
    begins = min(begins, max_length)
    return ids[:begins] + ids[len(ids) - max_length + begins :]
