"""Texts as batches, and what comes of the batches by text again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerif.data.batching import Batch, Encoded, collate, pack
from layerif.errors import NumericalError
from layerif.model.opening import input_device


class Rows:
    """Texts in batches of similar length.

    Args:
        items: the texts, each with an index of its own.
        batch_tokens: tokens of a batch, padding counted.
        model: what they are for, and where they lie.

    Attributes:
        batches: all texts, in another order.
        tokens: how many are scored.
    """

    def __init__(self, items: Sequence[Encoded], batch_tokens: int, model: Any) -> None:
        groups, device = pack(items, batch_tokens, model), input_device(model)
        self.batches: list[Batch] = [collate(group, device=device) for group in groups]
        place = {item.index: row for row, item in enumerate(items)}
        self._order = torch.tensor([place[item.index] for group in groups for item in group])
        self._scored = torch.tensor([item.scored for item in items], dtype=torch.float64)
        self.tokens = int(self._scored.sum())

    def __len__(self) -> int:
        return len(self._scored)

    def means(self, nats: Sequence[torch.Tensor]) -> torch.Tensor:
        """(texts,) float64 nats a scored token, of each batch's summed nats (B,)."""
        found = torch.empty_like(self._scored)
        found[self._order] = torch.cat([each.double().cpu() for each in nats])
        return found / self._scored


def finite(nats: torch.Tensor, what: str, when: str, advice: str = "") -> torch.Tensor:
    """The losses of texts, all of them finite.

    Args:
        nats: (texts,).
        what: one of the texts, in words.
        when: what the model was like.
        advice: beside float32.

    Raises:
        NumericalError: one is not; names it.
    """
    if not nats.isfinite().all():
        row = int((~nats.isfinite()).nonzero()[0, 0])
        raise NumericalError(
            f"the loss of {what} {row} {when} is {nats[row].item()}; stopped (try dtype='float32'"
            f"{advice})"
        )
    return nats
