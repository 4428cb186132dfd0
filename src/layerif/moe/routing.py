"""Which experts a token is sent to, and with what weight."""

from __future__ import annotations

import torch
from torch.nn import functional


def probabilities(inputs: torch.Tensor, router: torch.Tensor) -> torch.Tensor:
    """(..., n) softmax of x R^T, in float32 whatever the dtype of the model (float64 stays).

    Args:
        inputs: x (..., in).
        router: R (n, in).
    """
    exact = torch.promote_types(inputs.dtype, torch.float32)
    with torch.autocast(inputs.device.type, enabled=False):
        return functional.linear(inputs.to(exact), router.to(exact)).softmax(-1)


def gates(chances: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest probabilities, brought back to the sum 1, and 0 for the others; and which.

    Args:
        chances: (..., n) probabilities.
        top_k: k, 1 to n.

    Returns:
        (..., n) weights, and (..., n) bool, true at the experts taken: a weight may round to 0.
    """
    if top_k == chances.shape[-1]:
        return chances, torch.ones_like(chances, dtype=torch.bool)
    values, chosen = chances.topk(top_k, dim=-1)
    shares = values / values.sum(-1, keepdim=True)
    taken = torch.zeros_like(chances, dtype=torch.bool).scatter(-1, chosen, True)
    return torch.zeros_like(chances).scatter(-1, chosen, shares), taken
