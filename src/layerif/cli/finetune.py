"""`layerif finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from layerif.choices import Preset, Schedule
from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe

TRAINING = "Training"
ADAPTER = "Adapter"


def finetune(
    context: typer.Context,
    model: options.Model,
    task: Annotated[
        str,
        typer.Option(
            "--task",
            help="One of `layerif tasks`, or a JSONL, CSV or parquet file.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.", show_default=False)],
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            help="Plan of experts or of ranks, from `layerif allocate`.",
            show_default="LoRA of one rank",
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            "--preset",
            help="paper: LayerIF's own setting in place of the defaults; what is given wins.",
            show_default=False,
        ),
    ] = None,
    train_samples: Annotated[
        int | None, typer.Option("--train-samples", help="Training rows.", show_default="all")
    ] = None,
    validation_samples: Annotated[
        int, typer.Option("--validation-samples", help="Rows measured in training; 0 for none.")
    ] = 100,
    rank: Annotated[
        int,
        typer.Option("--rank", help="Of each expert, or of plain LoRA.", rich_help_panel=ADAPTER),
    ] = 8,
    alpha: Annotated[
        float,
        typer.Option("--alpha", help="LoRA's scale is alpha / rank.", rich_help_panel=ADAPTER),
    ] = 16.0,
    dropout: Annotated[
        float, typer.Option("--dropout", help="Of its input.", rich_help_panel=ADAPTER)
    ] = 0.0,
    strict_dropout: Annotated[
        bool,
        typer.Option(
            "--strict-dropout", help="A mask of its own for each expert.", rich_help_panel=ADAPTER
        ),
    ] = False,
    top_k: Annotated[
        int, typer.Option("--top-k", help="Experts of a token.", rich_help_panel=ADAPTER)
    ] = 2,
    balance: Annotated[
        float,
        typer.Option(
            "--balance",
            help="Factor of the load-balancing loss; 0.001 is usual.",
            rich_help_panel=ADAPTER,
        ),
    ] = 0.0,
    epochs: Annotated[
        float,
        typer.Option("--epochs", help="Passes through the rows.", rich_help_panel=TRAINING),
    ] = 3.0,
    max_steps: Annotated[
        int | None,
        typer.Option(
            "--max-steps",
            help="Steps of the optimiser, in place of --epochs.",
            show_default="",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            help="Rows of a step, over all processes.",
            rich_help_panel=TRAINING,
        ),
    ] = 16,
    learning_rate: Annotated[
        float,
        typer.Option("--learning-rate", help="AdamW's highest.", rich_help_panel=TRAINING),
    ] = 3e-4,
    schedule: Annotated[
        Schedule,
        typer.Option("--schedule", help="The rate after the warm-up.", rich_help_panel=TRAINING),
    ] = "linear",
    warmup_ratio: Annotated[
        float,
        typer.Option(
            "--warmup-ratio", help="Share of steps in which it rises.", rich_help_panel=TRAINING
        ),
    ] = 0.03,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", help="Of AdamW.", rich_help_panel=TRAINING)
    ] = 0.0,
    max_grad_norm: Annotated[
        float,
        typer.Option(
            "--max-grad-norm",
            help="Gradients are clipped to this norm; 0 for no clipping.",
            rich_help_panel=TRAINING,
        ),
    ] = 1.0,
    append_eos: Annotated[
        bool,
        typer.Option(
            "--append-eos/--no-append-eos",
            help="End completions with the token that ends a text.",
            rich_help_panel=TRAINING,
        ),
    ] = True,
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            "--evaluate-every",
            help="Steps between measurements on validation rows.",
            show_default="an epoch",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience",
            help="Stop after so many without a lower loss, and keep the best.",
            show_default="never",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    checkpoint_every: Annotated[
        int,
        typer.Option(
            "--checkpoint-every", help="Steps between checkpoints.", rich_help_panel=TRAINING
        ),
    ] = 50,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Run layers again in the backward pass: less memory, a third more time.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    style: options.Style = "alpaca",
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
    from layerif.artifacts import FINETUNING_FILE, Allocation
    from layerif.checkpoint import check_out
    from layerif.processes import is_first
    from layerif.studies.presets import finetuning_preset
    from layerif.tasks import load_task

    context.params.update(finetuning_preset(preset, options.given(context)))
    asked = context.params
    chosen = None if plan is None else Allocation.load(plan)
    check_out(out, out / FINETUNING_FILE, overwrite=overwrite)
    tokenizer = options.tokenizer_for(asked["style"], model, trust_remote_code=trust_remote_code)
    data = load_task(task, data_dir=data_dir, style=asked["style"], tokenizer=tokenizer)
    train = data.sample("train", train_samples, seed)
    measured = data.sample("validation", validation_samples, seed) if validation_samples else []

    from layerif.finetuning.options import FinetuneOptions
    from layerif.report import finetuning_table

    settings = FinetuneOptions(**{n: asked[n] for n in FinetuneOptions.__dataclass_fields__})

    from layerif.model import open_model
    from layerif.studies.finetuning import finetune_into

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
