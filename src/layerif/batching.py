"""Examples as token batches: prompt and completion tokenised as one text, the prompt masked.

Results never depend on how examples are batched: every position id is explicit, no token of a text
attends to padding, and what comes out is put back by the example's index.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from layerif.choices import PaddingSide
from layerif.errors import InputError
from layerif.model.vocabulary import check_tokens
from layerif.progress import note


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised text of which the tokens from `start` on are scored.

    Attributes:
        index: position of the text in the list it came from.
        input_ids: its tokens.
        start: index of the first scored token, at least 1 since nothing predicts the first token;
            the number of tokens where none is scored.
    """

    index: int
    input_ids: list[int]
    start: int

    @property
    def scored(self) -> int:
        return len(self.input_ids) - self.start


@dataclass(frozen=True)
class Batch:
    """Padded texts, with B rows of T positions and N scored tokens among them.

    Attributes:
        inputs: input_ids, attention_mask and position_ids, each (B, T) int64. The mask says which
            positions may be attended to, not which are padding: see `collate`.
        predicts: (B, T) bool, true where the next token is scored.
        targets: (N,) the scored tokens, row by row.
        owners: (N,) the row that each scored token belongs to.
        counts: (B,) int64, scored tokens of each row.
        items: what the rows are.
    """

    inputs: dict[str, torch.Tensor]
    predicts: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    counts: torch.Tensor
    items: Sequence[Encoded]

    @property
    def tokens(self) -> int:
        """Tokens that are no padding."""
        return sum(len(item.input_ids) for item in self.items)


def encode(
    tokenizer: Any, texts: Sequence[tuple[str, str]], max_length: int
) -> tuple[list[Encoded], list[int]]:
    """Tokenise (prompt, completion) pairs, each pair as one text.

    A token that spans the border belongs to the completion. Too long a text loses its prompt from
    the left (a leading special token stays), never its completion.

    Args:
        max_length: tokens kept of a text.

    Returns:
        The encoded texts, and the indices of those left out, because their completion does not fit
        beside one token of context or has no token that anything predicts.
    """
    if not texts:
        return [], []
    joined = [prompt + completion for prompt, completion in texts]
    encodings = tokenizer(joined, return_offsets_mapping=bool(tokenizer.is_fast))
    special = set(tokenizer.all_special_ids)
    encoded, dropped = [], []
    for index, ids in enumerate(encodings["input_ids"]):
        prompt = texts[index][0]
        if tokenizer.is_fast:
            ends = (end for _, end in encodings["offset_mapping"][index])
            start = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
        else:
            start = _common_prefix(tokenizer(prompt)["input_ids"], ids)
        start = max(start, 1)
        scored = len(ids) - start
        if scored < 1 or scored >= max_length:
            dropped.append(index)
            continue
        kept = _shortened(ids, max_length, special)
        encoded.append(Encoded(index, kept, len(kept) - scored))
    return encoded, dropped


def encode_samples(
    tokenizer: Any, texts: Sequence[tuple[str, str]], max_length: int, what: str
) -> tuple[list[Encoded], list[int]]:
    """As `encode`, for samples that are left out with a note where they do not fit.

    Args:
        what: the kind of samples, for messages.

    Raises:
        InputError: none fits, or there are none.
    """
    items, dropped = encode(tokenizer, texts, max_length)
    if not items:
        raise InputError(
            f"none of the {len(texts)} {what} samples has a completion that fits into "
            f"{max_length} tokens beside one token of prompt; raise --max-length, or shorten the "
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

    Too long a prompt loses tokens from the left (a leading special token stays). Tokens that a
    tokenizer puts behind every text are left out, since nothing should follow them.

    Args:
        max_length: tokens kept of a prompt, at least 2.

    Raises:
        InputError: a prompt has no token to go on from.
    """
    special = set(tokenizer.all_special_ids)
    behind = sum(1 for _ in takewhile(special.__contains__, reversed(tokenizer("a")["input_ids"])))
    encoded = []
    for index, ids in enumerate(tokenizer(list(prompts))["input_ids"] if prompts else []):
        kept = _shortened(ids[: len(ids) - behind], max_length, special)
        if not kept:
            raise InputError(
                f"prompt {index} is empty, and the tokenizer puts no token before a text that a "
                "model could go on from; give every row a prompt"
            )
        encoded.append(Encoded(index, kept, len(kept)))
    return encoded


def _shortened(ids: list[int], max_length: int, special: Container[int]) -> list[int]:
    """The last `max_length` tokens, among them a special token that begins the text."""
    if len(ids) <= max_length:
        return ids
    head = ids[:1] if ids[0] in special else []
    return head + ids[len(ids) - max_length + len(head) :]


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def pack(items: Sequence[Encoded], batch_tokens: int, model: Any = None) -> list[list[Encoded]]:
    """Group texts of similar length, the longest first, at most `batch_tokens` with padding.

    The longest come first so that a batch that does not fit in memory fails at once, and so that
    the time left is not underestimated. A text longer than the budget is a batch by itself.

    Args:
        model: what the batches are for.

    Raises:
        InputError: a text holds a token that the model has no embedding for.
    """
    if model is not None:
        check_tokens(model, (item.input_ids for item in items))
    if batch_tokens < 1:
        raise InputError(f"batch tokens must be at least 1, not {batch_tokens}")
    batches: list[list[Encoded]] = []
    width = 0
    for item in sorted(items, key=lambda item: (-len(item.input_ids), item.index)):
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(item)
        else:
            batches.append([item])
            width = len(item.input_ids)
    return batches


def collate(
    items: Sequence[Encoded],
    *,
    device: torch.device,
    padding_side: PaddingSide = "right",
    mask_padding: bool = False,
) -> Batch:
    """Pad texts to a batch on `device`.

    On the right, padding goes on as if it were text, with nothing masked: attention is causal, so
    no token of the text sees it. Thus every row attends to something. One that attends to nothing,
    as padding on the left does, is NaN in a float64 model with eager attention (Gemma 2, Bloom,
    MPT), which takes the softmax in float32, where the mask's least float64 is minus infinity.

    Args:
        mask_padding: mask it on the right too, for those that read in the mask what is padding, as
            routers do. Every row still attends to something, unless its padding is longer than a
            sliding window: that is NaN, and refused, in float64 with eager attention alone.
    """
    width = max(len(item.input_ids) for item in items)
    # Any token pads: none of a text attends to it, and no padded position is scored.
    input_ids = torch.zeros(len(items), width, dtype=torch.int64)
    attention_mask = torch.ones_like(input_ids)
    predicts = torch.zeros(len(items), width, dtype=torch.bool)
    for row, item in enumerate(items):
        length = len(item.input_ids)
        first = width - length if padding_side == "left" else 0
        input_ids[row, first : first + length] = torch.tensor(item.input_ids)
        attention_mask[row, :first] = 0
        if mask_padding:
            attention_mask[row, first + length :] = 0
        predicts[row, first + item.start - 1 : first + length - 1] = True
    position_ids = (attention_mask.cumsum(1) - 1).clamp_(min=0)
    scored = predicts.nonzero()
    counts = predicts.sum(1)
    targets = input_ids[scored[:, 0], scored[:, 1] + 1]
    return Batch(
        inputs={
            "input_ids": input_ids.to(device),
            "attention_mask": attention_mask.to(device),
            "position_ids": position_ids.to(device),
        },
        predicts=predicts.to(device),
        targets=targets.to(device),
        owners=scored[:, 0].to(device),
        counts=counts.to(device),
        items=items,
    )


def accepted(forward: Callable[..., Any], inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A batch's inputs as a model's `forward` takes them.

    Models that know distances alone (Bloom and MPT, by a bias on attention) have no position_ids.
    """
    if "position_ids" in inspect.signature(forward).parameters:
        return inputs
    return {name: value for name, value in inputs.items() if name != "position_ids"}
