"""The likelihood a model gives to the scored tokens of a batch: the one forward pass of layerif.

Scoring, perplexity and accuracy all start from the same negative log-likelihoods, so they agree on
what is predicted from what.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from layerif.batching import Batch, accepted


def token_losses(model: Any, batch: Batch, *, through: Any = None) -> torch.Tensor:
    """(N,) float32 (float64 for a float64 model) negative log-likelihood of each scored token.

    In nats, in the order of `batch.targets`. Logits are computed at the N positions that predict a
    scored token and nowhere else.

    Args:
        through: what is called in the model's place: what it is wrapped in, for training in several
            processes.
    """
    inputs = accepted(model.forward, batch.inputs)
    with _head_sees_only(model, batch.predicts) as selected:
        logits = (through or model)(**inputs, use_cache=False).logits
    logits = logits[0] if selected else logits[batch.predicts.to(logits.device)]  # (N, vocabulary)
    if logits.dtype != torch.float64:
        logits = logits.float()
    # Where a model is spread over devices, its logits may come from another one than its inputs.
    targets = batch.targets.to(logits.device)
    return functional.cross_entropy(logits, targets, reduction="none")


def row_sums(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B,) sums over the scored tokens of each row of `values` (N,)."""
    sums = torch.zeros(len(batch.items), dtype=values.dtype, device=values.device)
    return sums.index_add(0, batch.owners.to(values.device), values)


@contextmanager
def _head_sees_only(model: Any, positions: torch.Tensor) -> Iterator[bool]:
    """Hand the language-model head just the hidden states at `positions`, as one row of N.

    A hook on the head, and not transformers' `logits_to_keep`, since rows of a batch are scored at
    different positions; whatever the model does to its logits afterwards is done as ever. Yields
    whether the model has such a head.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield False
        return

    def select(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0][positions.to(args[0].device)].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield True
    finally:
        handle.remove()
