"""Options that several commands share, each declared once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from layerif.core.choices import (
    Aggregation,
    Dtype,
    OnConstant,
    Orientation,
    Preset,
    PromptStyle,
    TaskScoring,
)

Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="Hub id, model folder, .gguf file, or the alias smollm2.",
        show_default=False,
    ),
]
Task = Annotated[
    str,
    typer.Option(
        "--task",
        help="One of `layerif tasks`, or a JSONL, CSV or parquet file.",
        show_default=False,
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write to.", show_default=False)]
RunFolder = Annotated[
    Path, typer.Option("--out", help="Run folder to write to.", show_default=False)
]
OutModel = Annotated[Path, typer.Option("--out", help="Model folder to write.", show_default=False)]
PresetOption = Annotated[
    Preset | None,
    typer.Option(
        "--preset",
        help="paper: LayerIF's own setting in place of the defaults; what is given wins.",
        show_default=False,
    ),
]
InfluenceScores = Annotated[
    Path | None,
    typer.Option(
        "--scores",
        help="Run folder of `layerif score`, for the plan layerif.",
        show_default=False,
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        help="Folder of a LoRA, or of a mixture of LoRA experts, that PEFT has written.",
        show_default=False,
    ),
]
AdapterName = Annotated[
    str, typer.Option("--adapter-name", help="Which one, where the folder holds several.")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Precision the model runs in.")]
PruningDtype = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="Precision of the computation. The folder keeps that of the model's files, where it "
        "is narrower.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ..., or auto.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="auto spreads a model larger than one GPU over all of them; in place of --device.",
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of parquet data sets, instead of the hub."),
]
Style = Annotated[
    PromptStyle,
    typer.Option(
        "--style",
        help="Form of prompts; chat is the model's own chat template, harness has the words of "
        "lm-evaluation-harness.",
    ),
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-option",
        metavar="NAME=VALUE",
        help="Variable of the chat template, such as enable_thinking=false; repeat for several.",
        show_default=False,
    ),
]
Scoring = Annotated[
    TaskScoring,
    typer.Option(
        "--scoring",
        help="How answers are found: likelihood of each candidate, or generation of one.",
    ),
]
# Splits do not depend on it: two commands with different seeds would otherwise train on, or
# calibrate with, what the other one tests on.
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of all draws; splits do not depend on it.")
]
TrainSamples = Annotated[int, typer.Option("--train-samples", help="Training rows of --task.")]
ValidationSamples = Annotated[
    int, typer.Option("--validation-samples", help="Validation rows of --task.")
]
MaxLength = Annotated[int, typer.Option("--max-length", help="Tokens kept of an example.")]
ContextLength = Annotated[
    int, typer.Option("--context-length", help="Tokens of a chunk of running text.")
]
Calibration = Annotated[
    str, typer.Option("--calibration", help="python-docs, wikitext2, or a text file.")
]
CalibrationSamples = Annotated[
    int, typer.Option("--calibration-samples", help="Chunks of calibration text.")
]
BatchTokens = Annotated[
    int, typer.Option("--batch-tokens", help="Tokens run at once, padding counted.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON for machines.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a result that layerif wrote to --out before.")
]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Keep no likelihoods for later, and use none kept before."),
]
Aggregate = Annotated[
    Aggregation, typer.Option("--aggregate", help="How a layer's influences become one score.")
]
OrientationOption = Annotated[
    Orientation,
    typer.Option("--orientation", help="direct: high scores get more of the budget."),
]
ConstantOption = Annotated[
    OnConstant, typer.Option("--on-constant", help="What scores that are all equal give.")
]


def prompts(
    style: PromptStyle,
    template_option: list[str] | None,
    model: str | None,
    *,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """What `load_task` takes to make prompts: the style, and what the style chat needs.

    The tokenizer is opened before the model, so that prompts are there to be refused before the
    weights are; None where the style needs none, or no model is named.

    Raises:
        InputError: template options for another style, or not in their form.
    """
    from layerif.data.styles import check_template_options

    chosen = dict(map(_template_option, template_option or []))
    check_template_options(style, chosen)
    tokenizer = None
    if style == "chat" and model is not None:
        from layerif.model.opening import open_tokenizer

        tokenizer = open_tokenizer(model, trust_remote_code=trust_remote_code)
    return {"style": style, "tokenizer": tokenizer, "template_options": chosen}


def _template_option(text: str) -> tuple[str, Any]:
    """Name and value: JSON's true, false, null and numbers where it is one, and else the text.

    Raises:
        InputError: no name and value.
    """
    from layerif.errors import InputError

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(
            f"--template-option takes NAME=VALUE, such as enable_thinking=false, and not {text!r}"
        )
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def rows(context: Any, task: Any, split: Any, parameter: str | None = None) -> int | None:
    """How many rows of a split are asked for; a default no more than there are, as the recipe says.

    Args:
        context: of the command.
        task: that has the split.
        split: `train`, `validation` or `test`.
        parameter: of the command that holds the count, `<split>_samples` unless it is named.
    """
    from layerif.cli.command import given

    parameter = parameter or f"{split}_samples"
    count: int | None = context.params[parameter]
    if count and parameter not in given(context) and context.params.get("preset") is None:
        count = context.params[parameter] = task.default(split, count)
    return count


def words(text: str) -> list[str]:
    """The words of an option that takes several, with commas between them."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str | None, option: str) -> list[float]:
    """The numbers of an option that takes several, with commas between them.

    Raises:
        InputError: one is no number.
    """
    from layerif.errors import InputError

    try:
        return [float(word) for word in words(text or "")]
    except ValueError:
        raise InputError(
            f"{option} takes numbers with commas between them, such as 0.01,1, and not {text!r}"
        ) from None


def whole_numbers(text: str, option: str) -> list[int]:
    """The same for whole numbers.

    Raises:
        InputError: one is none.
    """
    from layerif.errors import InputError

    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise InputError(
            f"{option} takes whole numbers with commas between them, such as 0,1,2, and not "
            f"{text!r}"
        ) from None


def likelihood_cache(*, no_cache: bool) -> Path | None:
    """Where the command line keeps likelihoods, by model and texts."""
    from layerif.core.files import cache_folder

    return None if no_cache else cache_folder() / "likelihoods"
