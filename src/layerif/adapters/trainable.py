"""How many parameters a plan of experts or ranks trains, from the shapes of projections."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from layerif.artifacts import Plan
from layerif.core.files import check_patterns
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers, Projection, find_decoder_layers
from layerif.model.opening import describe
from layerif.model.peft_adapters import check_rank
from layerif.plans.maps.counts import IntArray, equal_rank, equal_ranks


def trainable_parameters(
    plan: Plan,
    model: PreTrainedModel,
    *,
    rank: int | Sequence[int] = 8,
    target_modules: Sequence[str] | str | None = None,
) -> IntArray:
    """Trainable parameters in each decoder layer of what a plan is spent on; int64, (layers,).

    A projection from d_in to d_out has n r (d_in + d_out) in n experts of rank r, and where n > 1
    another n d_in in its router; r (d_in + d_out) in a plain LoRA of rank r.

    Args:
        plan: of experts, as `LoraMoeConfig.for_plan` takes it, or of ranks, as `lora_config_for`.
        model: a skeleton without weights will do.
        rank: of each expert, or a list with one for each layer; of no account for a plan of ranks.
        target_modules: names of projections, or a regular expression; None for all of them.

    Raises:
        InputError: a plan of sparsity, or one of another model; no projection is so called.
    """
    layers = find_decoder_layers(model)
    plan.check_fits(describe(model), "ranks" if plan.kind == "ranks" else "experts")
    counts = np.array(plan.allocation, dtype=np.int64)
    alone = plan.kind == "ranks"
    ranks = counts if alone else equal_ranks(counts, rank)
    routed = np.where(alone | (counts == 1), 0, counts)
    total = np.zeros(len(layers), dtype=np.int64)
    for p in targeted(layers, target_modules):
        lora = ranks[p.layer] * (p.in_features + p.out_features)
        total[p.layer] += lora + routed[p.layer] * p.in_features
    return total


def trained_beside_lora(
    plan: Plan, model: PreTrainedModel, *, rank: int | None = None
) -> dict[str, Any]:
    """What a plan trains, beside the plain LoRA of one rank in all layers of equal total rank.

    Args:
        plan: of experts, each of rank `rank`, or of ranks.
        model: a skeleton without weights will do.
        rank: of each expert; None for a plan of ranks.

    Returns:
        `parameters`, `by_layer`, the `rank` of experts, and of `plain_lora` its `rank` and its
        `parameters`: plain numbers.

    Raises:
        InputError: as `trainable_parameters`, or a rank is above a projection's smaller side.
    """
    ranks = [int(r) for r in plan.allocation] if rank is None else rank
    check_rank(find_decoder_layers(model).projections, ranks)
    own = trainable_parameters(plan, model, rank=rank or 1)
    uniform = equal_rank(plan.allocation, rank or 1)
    lora = Plan(kind="ranks", allocation=[uniform] * len(plan.allocation))
    return {
        "rank": rank,
        "parameters": int(own.sum()),
        "by_layer": own.tolist(),
        "plain_lora": {
            "rank": uniform,
            "parameters": int(trainable_parameters(lora, model).sum()),
        },
    }


def targeted(layers: DecoderLayers, target_modules: Sequence[str] | str | None) -> list[Projection]:
    """The projections of decoder layers that PEFT would take for these targets.

    Args:
        layers: of the model.
        target_modules: ends of names (`q_proj`, `self_attn.q_proj`), a regular expression for the
            whole name, or None for all projections.

    Raises:
        InputError: one of the names, or the expression, is that of no projection.
    """
    if target_modules is None:
        return layers.linear
    names = {full_name(layers, p): p for p in layers.linear}
    wanted: dict[str, Callable[[str], bool]]
    if isinstance(target_modules, str):
        check_patterns([target_modules], list(names), "target_modules")
        whole = re.compile(target_modules)
        wanted = {target_modules: lambda name: whole.fullmatch(name) is not None}
    else:
        wanted = {end: partial(_ends_with, end) for end in target_modules}
    for target, matches in wanted.items():
        if not any(map(matches, names)):
            raise InputError(
                f"no projection of a decoder layer is called {target!r}; they are "
                f"{', '.join(sorted({p.name for p in layers.linear}))}"
            )
    return [p for name, p in names.items() if any(matches(name) for matches in wanted.values())]


def full_name(layers: DecoderLayers, projection: Projection) -> str:
    """A projection's path in the model."""
    return f"{layers.path}.{projection.layer}.{projection.name}"


def _ends_with(end: str, name: str) -> bool:
    return name == end or name.endswith(f".{end}")
