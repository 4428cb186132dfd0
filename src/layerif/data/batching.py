"""Tokenised texts as padded batches.

Results never depend on how examples are batched: every position id is explicit, no token of a text
attends to padding, and what comes out is put back by the example's index.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerif.core.choices import PaddingSide
from layerif.errors import InputError
from layerif.model.checks import check_tokens


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


def pack(
    items: Sequence[Encoded], batch_tokens: int, model: Any = None, *, growing: int = 0
) -> list[list[Encoded]]:
    """Group texts of similar length, the longest first, at most `batch_tokens` with padding.

    The longest come first so that a batch that does not fit in memory fails at once, and so that
    the time left is not underestimated. A text longer than the budget is a batch by itself.

    Args:
        model: what the batches are for; texts on both sides of one of its `rope_borders` are kept
            apart. May be left out where all texts are of one length.
        growing: tokens that may be generated after each text; texts that would pass a border then
            share a batch only with those that do so at the same token.

    Raises:
        InputError: a text holds a token that the model has no embedding for.
    """
    if model is not None:
        check_tokens(model, (item.input_ids for item in items))
    if batch_tokens < 1:
        raise InputError(f"batch tokens must be at least 1, not {batch_tokens}")
    borders = rope_borders(model)

    def sides(length: int) -> list[int | bool]:
        return [length if length <= b < length + growing else length > b for b in borders]

    batches: list[list[Encoded]] = []
    width = 0
    for item in sorted(items, key=lambda item: (-len(item.input_ids), item.index)):
        length = len(item.input_ids)
        fits = batches and (len(batches[-1]) + 1) * width <= batch_tokens
        if fits and sides(length) == sides(width):
            batches[-1].append(item)
        else:
            batches.append([item])
            width = length
    return batches


def rope_borders(model: Any) -> list[int]:
    """The lengths beyond which a model reads its positions otherwise, ascending; mostly none.

    LongRoPE (Phi-3) has two sets of frequencies, and all texts of a batch get the one for the
    longest: what a model says of a text would depend on its batch. Dynamic scaling changes beyond
    `max_position_embeddings` alone, where no text is let.
    """
    if model is None:
        return []
    config = model.config.get_text_config(decoder=True)
    parameters = getattr(config, "rope_parameters", None) or {}
    # One set of parameters, or one for each kind of layer.
    sets = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    found = {
        each.get("original_max_position_embeddings")
        for each in sets
        if each.get("rope_type") == "longrope"
    }
    return sorted(int(border) for border in found if border is not None)


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
