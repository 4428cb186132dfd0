"""Which experts a token is sent to, and with what weight."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.nn import functional


def logits(inputs: torch.Tensor, router: torch.Tensor) -> torch.Tensor:
    """(..., n) x R^T, in float32 whatever the dtype of the model (float64 stays).

    Args:
        inputs: x (..., in).
        router: R (n, in).
    """
    exact = torch.promote_types(inputs.dtype, torch.float32)
    device = inputs.device.type
    # Leaving autocast costs as much as a small operation, and generation is made of such.
    under = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if under else nullcontext():
        return functional.linear(inputs.to(exact), router.to(exact))


def gates(scores: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest probabilities, brought back to the sum 1, and 0 for the others; and which.

    That is the softmax of the k largest logits alone: what the others would add to the sum cancels.

    Args:
        scores: (..., n) logits.
        top_k: k, 1 to n.

    Returns:
        (..., n) weights, and (..., k) which experts are taken: a weight may round to 0.
    """
    if top_k == scores.shape[-1]:
        return scores.softmax(-1), torch.arange(top_k, device=scores.device).expand_as(scores)
    values, chosen = scores.topk(top_k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, chosen, values.softmax(-1)), chosen


def assigned(chances: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(..., n) 1 at the experts taken and 0 elsewhere, in the dtype of `chances`."""
    return torch.zeros_like(chances).scatter(-1, chosen, 1.0)
