"""`layerif finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from layerif.cli import options, training
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe


def finetune(
    context: typer.Context,
    model: options.Model,
    task: options.Task,
    out: options.OutFolder,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            help="Plan of experts or of ranks, from `layerif allocate`.",
            show_default="LoRA of one rank",
        ),
    ] = None,
    preset: options.PresetOption = None,
    train_samples: training.TrainSamples = None,
    validation_samples: training.ValidationSamples = 100,
    rank: training.Rank = 8,
    alpha: training.Alpha = 16.0,
    dropout: training.Dropout = 0.0,
    strict_dropout: training.StrictDropout = False,
    top_k: training.TopK = 2,
    balance: training.Balance = 0.0,
    epochs: training.Epochs = 3.0,
    max_steps: training.MaxSteps = None,
    batch_size: training.BatchSize = 16,
    learning_rate: training.LearningRate = 3e-4,
    schedule: training.ScheduleOption = "linear",
    warmup_ratio: training.WarmupRatio = 0.03,
    weight_decay: training.WeightDecay = 0.0,
    max_grad_norm: training.MaxGradNorm = 1.0,
    append_eos: training.AppendEos = True,
    evaluate_every: training.EvaluateEvery = None,
    patience: training.Patience = None,
    checkpoint_every: training.CheckpointEvery = 50,
    gradient_checkpointing: training.GradientCheckpointing = False,
    style: options.Style = "alpaca",
    template_option: options.TemplateOption = None,
    max_length: options.MaxLength = 512,
    batch_tokens: options.BatchTokens = 2048,
    dtype: options.DtypeOption = "float32",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Train an adapter on a task: mixtures of LoRA experts or ranks by a plan, or plain LoRA.

    Only completions are learnt. The folder is an adapter as PEFT saves it, with its record beside
    it; --dtype is of the frozen model, the adapter is in float32. Cut short, the same command goes
    on after the last whole checkpoint. `torchrun -m layerif finetune ...` shares every batch out
    over processes, which all have to see the folder.
    """
    from layerif.artifacts import ADAPTER, Allocation
    from layerif.core.checkpoint import check_out
    from layerif.core.processes import is_first
    from layerif.data import load_task

    settings = training.finetune_options(context.params)
    chosen = None if plan is None else Allocation.load(plan)
    check_out(out, ADAPTER, overwrite=overwrite)
    words = options.prompts(style, template_option, model, trust_remote_code=trust_remote_code)
    data = load_task(task, data_dir=data_dir, **words)
    train = data.sample("train", train_samples, seed)
    count = options.rows(context, data, "validation")
    measured = data.sample("validation", count, seed) if count else []

    from layerif.model.opening import open_model
    from layerif.report import finetuning_table
    from layerif.workflows.finetuning import finetune_into

    opened, tokenizer = open_model(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    record = finetune_into(
        out,
        opened,
        tokenizer,
        data,
        train=train,
        validation=measured,
        plan=chosen,
        options=settings,
        overwrite=overwrite,
    )
    if is_first():
        write_recipe(context, out)
    value: dict[str, Any] = record.model_dump(mode="json")
    emit(finetuning_table(record), value, as_json=as_json)
    say(f"wrote {out}", as_json=as_json)
