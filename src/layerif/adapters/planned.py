"""What plans train: the LoRA of a plan of ranks, and the parameters of ranks and experts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from peft import LoraConfig
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from layerif.artifacts import Plan
from layerif.core.files import check_patterns
from layerif.errors import InputError
from layerif.model.layers import DecoderLayers, Projection, find_decoder_layers
from layerif.model.opening import describe
from layerif.model.peft_adapters import adaptable, check_rank, note_left_out
from layerif.plans.maps.counts import IntArray, equal_rank, equal_ranks


def lora_config_for(
    plan: Plan,
    model: PreTrainedModel,
    *,
    alpha_per_rank: float = 2.0,
    lora_alpha: float | None = None,
    target_modules: Sequence[str] | str | None = None,
    lora_dropout: float = 0.0,
    adapt_experts: bool = False,
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
        adapt_experts: put one beside each expert of a mixture too, by PEFT's `target_parameters`.
        options: other fields of LoraConfig.

    Raises:
        InputError: no plan of ranks, or one of another model; a rank above a projection's smaller
            side; a scaling that is not positive; dropout beside experts; no projection is so
            called.
    """
    plan.check_fits(describe(model), "ranks")
    for name, value in (("alpha_per_rank", alpha_per_rank), ("lora_alpha", lora_alpha)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} is {value}; it must be a positive finite number")
    if adapt_experts and lora_dropout:
        raise InputError(
            f"adapt_experts: PEFT has no dropout beside experts, and lora_dropout is "
            f"{lora_dropout:g}; leave one of the two out"
        )
    layers = find_decoder_layers(model)
    adapted = adaptable(model, layers)
    experts = _parameters_of_experts(model, layers) if adapt_experts else {}
    note_left_out(layers, [*adapted, *(p for of in experts.values() for p in of)])
    projections = _targeted(layers, adapted, target_modules)
    ranks = [int(rank) for rank in plan.allocation]
    check_rank([*projections, *(of[0] for of in experts.values())], ranks)
    reached = sorted({p.layer for p in projections} | {of[0].layer for of in experts.values()})
    patterns = {layer: rf"{re.escape(layers.path)}\.{layer}\..*" for layer in reached}
    scaled = {} if lora_alpha is not None else patterns
    largest = max(ranks)
    return LoraConfig(
        # Readers that lay out memory by the configuration's one rank get the largest.
        r=largest,
        lora_alpha=alpha_per_rank * largest if lora_alpha is None else lora_alpha,
        rank_pattern={pattern: ranks[layer] for layer, pattern in patterns.items()},
        alpha_pattern={p: alpha_per_rank * ranks[layer] for layer, p in scaled.items()},
        target_modules=[_full_name(layers, p) for p in projections],
        target_parameters=list(experts) or None,
        lora_dropout=lora_dropout,
        fan_in_fan_out=all(isinstance(p.module, Conv1D) for p in projections),
        **options,
    )


def trainable_parameters(
    plan: Plan,
    model: PreTrainedModel,
    *,
    rank: int | Sequence[int] = 8,
    target_modules: Sequence[str] | str | None = None,
    adapt_experts: bool = False,
) -> IntArray:
    """Trainable parameters in each decoder layer of what a plan is spent on; int64, (layers,).

    A projection from d_in to d_out has n r (d_in + d_out) in n experts of rank r, and where n > 1
    another n d_in in its router; r (d_in + d_out) in a plain LoRA of rank r.

    Args:
        plan: of experts, as `LoraMoeConfig.for_plan` takes it, or of ranks, as `lora_config_for`.
        model: a skeleton without weights will do.
        rank: of each expert, or a list with one for each layer; ignored for a plan of ranks.
        target_modules: names of projections, or a regular expression; None for all of them.
        adapt_experts: whether each expert of a mixture has a LoRA too; for a plan of ranks.

    Raises:
        InputError: a plan of sparsity, or one of another model; no projection is so called; no
            experts that PEFT can adapt, or a plan that cannot reach them.
    """
    layers = find_decoder_layers(model)
    alone = plan.kind == "ranks" or adapt_experts
    plan.check_fits(describe(model), "ranks" if alone else "experts")
    counts = np.array(plan.allocation, dtype=np.int64)
    ranks = counts if alone else equal_ranks(counts, rank)
    routed = np.where(alone | (counts == 1), 0, counts)
    total = np.zeros(len(layers), dtype=np.int64)
    adapted = adaptable(model, layers) if alone else layers.linear
    targeted = _targeted(layers, adapted, target_modules)
    experts = _parameters_of_experts(model, layers) if adapt_experts else {}
    for p in [*targeted, *(p for of in experts.values() for p in of)]:
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
    check_rank(find_decoder_layers(model).linear, ranks)
    own = trainable_parameters(plan, model, rank=rank or 1)
    uniform = equal_rank(plan.allocation, rank or 1)
    lora = Plan(kind="ranks", allocation=[uniform] * len(plan.allocation))
    return {
        "rank": rank,
        "parameters": int(own.sum()),
        "by_layer": own.tolist(),
        "plain_lora": {"rank": uniform, "parameters": int(trainable_parameters(lora, model).sum())},
    }


def _parameters_of_experts(
    model: PreTrainedModel, layers: DecoderLayers
) -> dict[str, list[Projection]]:
    """The parameters that hold the weights of experts, by name, with the projections in each.

    Raises:
        InputError: there are none that PEFT can put a LoRA beside.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, list[Projection]] = {}
    for projection in layers.projections:
        if projection.fused is not None and projection.parameter.ndim == 3:
            found.setdefault(names[id(projection.parameter)], []).append(projection)
    if not found:
        raise InputError(
            f"adapt_experts: {type(model).__name__} has no experts that share a parameter of "
            "three dimensions, beside which PEFT can put a LoRA; leave it out"
        )
    return found


def _targeted(
    layers: DecoderLayers,
    adapted: Sequence[Projection],
    target_modules: Sequence[str] | str | None,
) -> list[Projection]:
    """The projections of decoder layers that PEFT would take for these targets.

    Args:
        layers: of the model.
        adapted: those of their projections that can have an adapter.
        target_modules: ends of names (`q_proj`, `self_attn.q_proj`), a regular expression for the
            whole name, or None for all projections.

    Raises:
        InputError: one of the names, or the expression, is that of no projection.
    """
    if target_modules is None:
        return list(adapted)
    names = {_full_name(layers, p): p for p in adapted}
    if isinstance(target_modules, str):
        check_patterns([target_modules], list(names), "target_modules")
        patterns = {target_modules: target_modules}
    else:
        patterns = {end: rf"(.*\.)?{re.escape(end)}" for end in target_modules}
    chosen: set[str] = set()
    for target, pattern in patterns.items():
        matched = {name for name in names if re.fullmatch(pattern, name)}
        if not matched:
            raise InputError(
                f"no projection of a decoder layer is called {target!r}; they are "
                f"{', '.join(sorted({p.name for p in adapted}))}"
            )
        chosen |= matched
    return [projection for name, projection in names.items() if name in chosen]


def _full_name(layers: DecoderLayers, projection: Projection) -> str:
    """A projection's path in the model."""
    return f"{layers.path}.{projection.layer}.{projection.name}"
