"""Options of fine-tuning, which several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from layerif.core.choices import Schedule

_ADAPTER = {"rich_help_panel": "Adapter"}
_TRAINING = {"rich_help_panel": "Training"}

TrainSamples = Annotated[
    int | None, typer.Option("--train-samples", help="Training rows.", show_default="all")
]
ValidationSamples = Annotated[
    int, typer.Option("--validation-samples", help="Rows measured in training; 0 for none.")
]
Rank = Annotated[int, typer.Option("--rank", help="Of each expert, or of plain LoRA.", **_ADAPTER)]
Alpha = Annotated[float, typer.Option("--alpha", help="LoRA's scale is alpha / rank.", **_ADAPTER)]
Dropout = Annotated[float, typer.Option("--dropout", help="Of its input.", **_ADAPTER)]
StrictDropout = Annotated[
    bool, typer.Option("--strict-dropout", help="A mask of its own for each expert.", **_ADAPTER)
]
TopK = Annotated[int, typer.Option("--top-k", help="Experts of a token.", **_ADAPTER)]
Balance = Annotated[
    float,
    typer.Option(
        "--balance", help="Factor of the load-balancing loss; 0.001 is usual.", **_ADAPTER
    ),
]
Epochs = Annotated[float, typer.Option("--epochs", help="Passes through the rows.", **_TRAINING)]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        "--max-steps",
        help="Steps of the optimiser, in place of --epochs.",
        show_default=False,
        **_TRAINING,
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", help="Rows of a step, over all processes.", **_TRAINING)
]
LearningRate = Annotated[
    float, typer.Option("--learning-rate", help="AdamW's highest.", **_TRAINING)
]
ScheduleOption = Annotated[
    Schedule, typer.Option("--schedule", help="The rate after the warm-up.", **_TRAINING)
]
WarmupRatio = Annotated[
    float,
    typer.Option("--warmup-ratio", help="Share of steps in which the rate rises.", **_TRAINING),
]
WeightDecay = Annotated[float, typer.Option("--weight-decay", help="Of AdamW.", **_TRAINING)]
MaxGradNorm = Annotated[
    float,
    typer.Option(
        "--max-grad-norm",
        help="Gradients are clipped to this norm; 0 for no clipping.",
        **_TRAINING,
    ),
]
AppendEos = Annotated[
    bool,
    typer.Option(
        "--append-eos/--no-append-eos",
        help="End completions with the token that ends a text.",
        **_TRAINING,
    ),
]
EvaluateEvery = Annotated[
    int | None,
    typer.Option(
        "--evaluate-every",
        help="Steps between measurements on validation rows.",
        show_default="an epoch",
        **_TRAINING,
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        "--patience",
        help="Stop after so many without a lower loss, and keep the best.",
        show_default="never",
        **_TRAINING,
    ),
]
CheckpointEvery = Annotated[
    int, typer.Option("--checkpoint-every", help="Steps between checkpoints.", **_TRAINING)
]
GradientCheckpointing = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing",
        help="Run layers again in the backward pass: less memory, a third more time.",
        **_TRAINING,
    ),
]


def finetune_options(asked: dict[str, Any]) -> Any:
    """The FinetuneOptions among a command's options, checked."""
    from layerif.finetuning.options import FinetuneOptions

    fields = FinetuneOptions.__dataclass_fields__
    return FinetuneOptions(**{name: asked[name] for name in fields if name in asked})
