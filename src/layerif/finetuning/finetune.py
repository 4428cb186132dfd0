"""Fine-tune an adapter on rows, by a plan or without one, and see what its routers do."""

from __future__ import annotations

import time
import warnings
from typing import Any, Literal

import torch

from layerif.adapters import LoraMoeConfig, lora_config_for, routing
from layerif.artifacts import Finetuning, Plan, RoutingUse, StepLoss, ValidationLoss
from layerif.core import processes
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.core.progress import note
from layerif.data.batching import collate, pack
from layerif.data.rows import Rows
from layerif.errors import InputError
from layerif.estimates import largest, note_memory
from layerif.finetuning.batches import Batches
from layerif.finetuning.options import FinetuneOptions
from layerif.finetuning.rows import encoded, encoded_rows
from layerif.likelihood import token_losses
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.modes import as_found, evaluation_mode
from layerif.model.opening import Tokenizer, describe, input_device, setting
from layerif.model.peft_adapters import base_record, check_rank, refuse_adapted

Method = Literal["lora", "lora_moe"]
# Of each trained number in float32: itself, its gradient, and AdamW's two means.
BYTES_PER_PARAMETER = 16


@takes(FinetuneOptions)
def finetune(
    model: Any,
    tokenizer: Tokenizer,
    train: Rows,
    validation: Rows = (),
    *,
    options: FinetuneOptions,
    plan: Plan | None = None,
    task: dict[str, Any] | None = None,
    steps: Steps = NO_STEPS,
) -> tuple[Any, Finetuning]:
    """Train a fresh adapter on completions or running text, by transformers' Trainer and AdamW.

    Of several processes each comes here with the same, and runs its share of every batch.

    Args:
        model: a causal LM of transformers, without adapters; it is changed in place, and left as it
            was found where that fails.
        train: rows, of which completions are learnt, or texts as tokens, of which all are; their
            order is drawn again in every epoch.
        validation: rows whose loss is measured as training goes; may be empty.
        options: of the adapter and its training; each by keyword too.
        plan: experts or ranks of each layer; None for LoRA of one rank.
        task: name and origin of the rows, for the record.
        steps: where checkpoints are kept; a run that was cut short goes on after the last whole
            one, to the same weights.

    Returns:
        The PEFT model in evaluation mode, and the record of how it was trained.

    Raises:
        InputError: there are no rows, or none fits; or as `with_new_adapter`; or patience is asked
            for without validation rows; or there are more processes than rows in a batch.
        NumericalError: a loss is not finite, or the adapter is not.
    """
    from layerif.finetuning.trainer import train_adapter

    complete_plan(model, plan, options)  # before the rows take their time
    items, measured, left_out = encoded_rows(model, tokenizer, train, validation, options)
    info = describe(model)
    batches = Batches(items, options, model)
    with as_found(model, unless_done=True):
        wrapped, method = with_new_adapter(model, plan, options)
        count, _ = wrapped.get_nb_trainable_parameters()
        kept = count * BYTES_PER_PARAMETER
        tokens = sum(len(item.input_ids) for item in items)
        note(
            f"fine-tuning {count:,} parameters ({kept / 1e9:.2f} GB with gradients and AdamW): "
            f"{len(batches):,} steps of {options.batch_size} rows, {len(items):,} rows of "
            f"{tokens:,} tokens in an epoch"
        )
        if not options.gradient_checkpointing:
            most = max(largest(step.parts) for step in (batches[0], batches[len(batches) - 1]))
            note_memory(unwrapped(wrapped), "fine-tuning", "inputs", most, kept=kept)
        started = time.monotonic()
        state = train_adapter(wrapped, batches, measured, options, steps)
        wrapped.eval()
        record = Finetuning(
            model=info,
            method=method,
            plan=plan,
            trainable_parameters=count,
            task=task or {},
            options=options.values(),
            rows={"train": len(items), "validation": len(measured), "left_out": left_out},
            steps=state.global_step,
            losses=[
                StepLoss(**{name: e[name] for name in StepLoss.model_fields if name in e})
                for e in state.log_history
                if "loss" in e
            ],
            evaluations=[
                ValidationLoss(step=e["step"], loss=e["eval_loss"])
                for e in state.log_history
                if "eval_loss" in e
            ],
            best_step=(state.best_global_step or None) if options.patience is not None else None,
            seconds=time.monotonic() - started,
            processes=processes.count(),
            setting=setting(model),
        )
    return wrapped, record


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
        config = lora_config_for(
            plan,
            model,
            alpha_per_rank=scaling,
            lora_dropout=options.dropout,
            adapt_experts=options.adapt_experts,
        )
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
        InputError: the plan is for another model, or of another kind, or of experts where the
            options have `adapt_experts`; or a rank is above the smaller side of a projection.
    """
    if plan is not None and plan.rules.ranks is None:
        raise InputError(
            f"the plan is one of {plan.kind}, which trains nothing; fine-tuning takes a plan of "
            "experts or of ranks (allocate_experts, allocate_ranks)"
        )
    if options.adapt_experts and plan is not None and plan.kind == "experts":
        raise InputError(
            "adapt_experts puts plain LoRA beside the model's own experts, and the plan is one of "
            "LoRA experts at other projections; leave one of the two out"
        )
    layers = find_decoder_layers(model)
    if plan is None:
        plan = Plan(kind="ranks", allocation=[options.rank] * len(layers))
    plan.check_fits(describe(model), plan.kind)
    own = [int(rank) for rank in plan.allocation] if plan.kind == "ranks" else options.rank
    check_rank(layers.linear, own)
    return plan


@torch.no_grad()
def routing_on(
    model: Any, tokenizer: Tokenizer, rows: Rows, options: FinetuneOptions
) -> RoutingUse:
    """The use of every router over the rows, prompts counted.

    Args:
        model: a PEFT model with a mixture of experts active, several in some layer.

    Raises:
        InputError: as `encode_samples`, or there is no router.
    """
    base = unwrapped(model)
    items = encoded(base, tokenizer, rows, options, "validation")
    device = input_device(base)
    with evaluation_mode(model), routing(model) as seen:
        for group in pack(items, options.batch_tokens, base):
            token_losses(base, collate(group, device=device, mask_padding=True))
    return seen.use(model)
