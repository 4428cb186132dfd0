"""Mixtures of LoRA experts as they are usually written: a loop over experts, in two forms.

`DenseLoop` sends every token through every expert and weighs what comes out; `DispatchLoop` sends
each expert its own tokens, as Mixtral's does. Routing is the usual one: softmax in float32, the k
largest, divided by their sum. The input is dropped once for all experts, which costs less than a
mask for each. Each expert has parameters of its own; the values are those of a layer of ours.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from layerif.adapters import LoraMoeLinear


class Loop(nn.Module):
    """What both have: the experts, the router, and the frozen projection.

    Args:
        layer: of ours, with the values to start from.
        name: of its adapter.
    """

    def __init__(self, layer: LoraMoeLinear, name: str = "default") -> None:
        super().__init__()
        self.base = layer.base_layer
        experts, self.top_k = layer.experts[name], layer.top_k[name]
        down, up = layer.lora_moe_A[name], layer.lora_moe_B[name]
        self.down = _own(down.chunk(experts))
        self.up = _own(up.chunk(experts, dim=1))
        self.router = _own([layer.lora_moe_router[name]])[0]
        self.scaling, self.dropout = layer.scaling[name], layer.dropout[name]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base(x)
        own = x.to(self.router.dtype)
        chances = functional.linear(own.float(), self.router.float()).softmax(-1)
        values, chosen = chances.topk(self.top_k, dim=-1)
        shares = (values / values.sum(-1, keepdim=True)).to(own.dtype)
        dropped = functional.dropout(own, self.dropout, self.training)
        return (result + self.experts(dropped, shares, chosen) * self.scaling).to(result.dtype)

    def experts(self, x: torch.Tensor, shares: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """(..., out) the experts' weighted sum, of (..., in) x and (..., k) shares and indices."""
        raise NotImplementedError


class DenseLoop(Loop):
    def experts(self, x: torch.Tensor, shares: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        gates = shares.new_zeros(*shares.shape[:-1], len(self.down)).scatter(-1, chosen, shares)
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for e, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            part = functional.linear(functional.linear(x, down), up)
            total = total + gates[..., e, None] * part
        return total


class DispatchLoop(Loop):
    def experts(self, x: torch.Tensor, shares: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        flat, shares = x.flatten(0, -2), shares.flatten(0, -2)
        total = flat.new_zeros(len(flat), len(self.up[0]))
        for e, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            tokens, slots = torch.where(chosen.flatten(0, -2) == e)
            part = functional.linear(functional.linear(flat[tokens], down), up)
            total = total.index_add(0, tokens, part * shares[tokens, slots, None])
        return total.view(*x.shape[:-1], -1)


def _own(parts: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(part.detach().clone()) for part in parts)
