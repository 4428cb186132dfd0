"""A plan of ranks as a `LoraConfig` of PEFT: plain LoRA with a rank of its own in every layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from layerif.adapters.trainable import full_name, targeted
from layerif.artifacts import Plan
from layerif.errors import InputError
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe
from layerif.model.peft_adapters import check_rank


def lora_config_for(
    plan: Plan,
    model: PreTrainedModel,
    *,
    alpha_per_rank: float = 2.0,
    lora_alpha: float | None = None,
    target_modules: Sequence[str] | str | None = None,
    lora_dropout: float = 0.0,
    **options: Any,
) -> LoraConfig:
    """The configuration of a LoRA whose rank in each decoder layer is that of the plan.

    Layers are found by structure. PEFT looks a rank up by a regular expression for the end of a
    module's name; each of ours begins with the whole path of one layer and its closing dot, so that
    layer 1 is not layer 11. Projections are named in full: nothing outside the decoder layers, such
    as a vision tower with projections of the same names, is adapted.

    Args:
        plan: of ranks, as `allocate_ranks` makes it.
        model: that the adapter is for; a skeleton without weights will do.
        alpha_per_rank: the scaling alpha / r, the same in every layer.
        lora_alpha: one alpha for all layers instead, so that the scaling falls with the rank.
        target_modules: names of projections, or a regular expression; None for all of them.
        lora_dropout: of the LoRA's input.
        options: other fields of LoraConfig.

    Raises:
        InputError: no plan of ranks, or one of another model; a rank above a projection's smaller
            side; a scaling that is not positive; no projection is so called.
    """
    plan.check_fits(describe(model), "ranks")
    for name, value in (("alpha_per_rank", alpha_per_rank), ("lora_alpha", lora_alpha)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} is {value}; it must be a positive finite number")
    layers = find_decoder_layers(model)
    projections = targeted(layers, target_modules)
    ranks = [int(rank) for rank in plan.allocation]
    check_rank(projections, ranks)
    patterns = {layer: rf"{re.escape(layers.path)}\.{layer}\..*" for layer in range(len(layers))}
    reached = sorted({p.layer for p in projections})
    largest = max(ranks)
    return LoraConfig(
        # Readers that lay out memory by the configuration's one rank get the largest.
        r=largest,
        lora_alpha=alpha_per_rank * largest if lora_alpha is None else lora_alpha,
        rank_pattern={patterns[layer]: ranks[layer] for layer in reached},
        alpha_pattern={}
        if lora_alpha is not None
        else {patterns[layer]: alpha_per_rank * ranks[layer] for layer in reached},
        target_modules=[full_name(layers, p) for p in projections],
        lora_dropout=lora_dropout,
        fan_in_fan_out=all(isinstance(p.module, Conv1D) for p in projections),
        **options,
    )
