"""The adapter that a plan asks for, put into a model."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch

from layerif.adapters import LoraMoeConfig, lora_config_for
from layerif.artifacts import Plan
from layerif.errors import InputError
from layerif.finetuning.options import FinetuneOptions
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import describe
from layerif.model.peft_adapters import base_record, check_rank, refuse_adapted

Method = Literal["lora", "lora_moe"]


def with_new_adapter(model: Any, plan: Plan | None, options: FinetuneOptions) -> tuple[Any, Method]:
    """The model as a PEFT model with a fresh adapter on every projection of its decoder layers.

    Its weights are in float32 whatever the model's dtype (float64 in a float64 model).

    Args:
        model: of transformers, without adapters; changed in place.
        plan: experts of each layer, ranks of each layer, or None for LoRA of one rank.

    Raises:
        InputError: the model has adapters already; or as `complete_plan`.
    """
    from peft import get_peft_model

    why = "and a fresh one is to be trained; open it without, or merge them (`merge_and_unload()`)"
    refuse_adapted(model, why)
    plan = complete_plan(model, plan, options)
    config: Any
    if plan.kind == "experts":
        config = LoraMoeConfig.for_plan(
            plan,
            top_k=options.top_k,
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            strict_dropout=options.strict_dropout,
            aux_loss_coef=options.balance,
        )
    else:
        scaling = options.alpha / options.rank
        config = lora_config_for(plan, model, alpha_per_rank=scaling, lora_dropout=options.dropout)
    base = base_record(model)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names in transformers that PEFT still uses
        torch.manual_seed(options.seed)
        wrapped = get_peft_model(model, config)
    # Where the kind of task is not given, PEFT writes over what is kept of the base model.
    config.task_type, config.auto_mapping = "CAUSAL_LM", base
    for field, value in vars(config).items():
        if isinstance(value, set):  # so that files are the same each time
            setattr(config, field, sorted(value))
    return wrapped, "lora_moe" if isinstance(config, LoraMoeConfig) else "lora"


def complete_plan(model: Any, plan: Plan | None, options: FinetuneOptions) -> Plan:
    """The plan of an adapter, that of LoRA of one rank where there is none.

    Args:
        model: that it is for; a skeleton without weights will do.

    Raises:
        InputError: the plan is for another model, or of another kind, or a rank is above the
            smaller side of a projection.
    """
    if plan is not None and plan.rules.ranks is None:
        raise InputError(
            f"the plan is one of {plan.kind}, which trains nothing; fine-tuning takes a plan of "
            "experts or of ranks (allocate_experts, allocate_ranks)"
        )
    layers = find_decoder_layers(model)
    if plan is None:
        plan = Plan(kind="ranks", allocation=[options.rank] * len(layers))
    plan.check_fits(describe(model), plan.kind)
    own = [int(rank) for rank in plan.allocation] if plan.kind == "ranks" else options.rank
    check_rank(layers.projections, own)
    return plan
