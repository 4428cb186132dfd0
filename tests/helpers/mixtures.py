"""Tiny mixtures, one expert of each layer idle, and what autograd says of each expert."""

from __future__ import annotations

from typing import Any

import torch

from helpers.architectures import tiny_architecture
from helpers.scoring import literal_gradients
from layerif.model.layers import find_decoder_layers

MIXTURES = ["mixtral", "gpt_oss", "qwen3_5_moe_text", "lfm2_moe", "granitemoehybrid"]
IDLE = 3  # the expert that no token is ever routed to
EXPERTS = 4


def mixture(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A mixture whose last expert of each layer is given no token, whatever the text."""
    model = tiny_architecture(name, dtype)

    def spare(_module: Any, _args: Any, output: Any) -> Any:
        *others, chosen = output  # (tokens, 2): what is meant for the last goes to one more
        return *others, torch.where(chosen == IDLE, (chosen.flip(1) + 1) % IDLE, chosen)

    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(spare)
    if dtype == torch.float64:  # which the other ways to call experts do not know
        model.set_experts_implementation("eager")
    return model


def experts(projections: Any) -> list[tuple[int, Any, int]]:
    """Row, projection and number of every expert's map."""
    return [
        (row, p, int(p.name.rpartition(".")[2]))
        for row, p in enumerate(projections)
        if "experts" in p.name
    ]


def idle(projections: Any) -> list[int]:
    """The rows of the experts that no token reaches."""
    return [row for row, _, number in experts(projections) if number == IDLE]


def own_part(projection: Any, whole: torch.Tensor) -> torch.Tensor:
    """(..., out, in) a projection's part of something like its parameter, written out."""
    if "experts" not in projection.name:
        return whole
    part = whole[..., int(projection.name.rpartition(".")[2]), :, :]
    return part.mT if type(projection.module.owner).__name__.startswith("GptOss") else part


def weight_gradients(model: Any, samples: Any) -> list[torch.Tensor]:
    """For each projection (samples, out, in) autograd's gradient, one sample at a time."""
    projections = find_decoder_layers(model).projections
    parameters = {id(p.parameter): p.parameter for p in projections}
    found = dict(
        zip(parameters, literal_gradients(model, samples, [*parameters.values()]), strict=True)
    )
    return [own_part(p, found[id(p.parameter)]) for p in projections]
