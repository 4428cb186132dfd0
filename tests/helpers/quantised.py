"""A tiny model of projections that are kept in 8 bits."""

from __future__ import annotations

import torch
from torch import nn

from helpers.tiny import tiny_model


class Packed(nn.Linear):
    """A map whose weight is kept in 8 bits, in rows of another shape, as in bitsandbytes."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense.in_features, dense.out_features, dense.bias is not None)
        self.step = dense.weight.abs().amax().item() / 127
        codes = (dense.weight.data / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(codes.view(torch.uint8).reshape(-1, 1), requires_grad=False)
        self.bias = dense.bias

    def matrix(self, dtype: torch.dtype) -> torch.Tensor:
        codes = self.weight.view(torch.int8).reshape(self.out_features, self.in_features)
        return codes.to(dtype) * self.step

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, self.matrix(input.dtype), self.bias)


def packed_and_dense():
    """A model of packed projections, and the dense one that computes the same."""
    packed, dense = tiny_model(dtype=torch.float64), tiny_model(dtype=torch.float64)
    for one, two in zip(packed.model.layers, dense.model.layers, strict=True):
        for name, module in list(two.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, own = name.rpartition(".")
                stand_in = Packed(module)
                setattr(one.get_submodule(parent), own, stand_in)
                module.weight.data = stand_in.matrix(torch.float64)
    return packed, dense
