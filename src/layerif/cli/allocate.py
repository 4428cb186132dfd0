"""Turn layer scores into a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerif.cli import allocate_counts, options
from layerif.cli.command import Command
from layerif.cli.lazy import group
from layerif.cli.plans import PlanOut, deliver
from layerif.core.choices import (
    Dtype,
    Granularity,
    Orientation,
    PlanMap,
    PromptStyle,
    PruningMethod,
)
from layerif.errors import InputError

if TYPE_CHECKING:
    from layerif.artifacts import ModelInfo

app = group(no_args_is_help=True, help="Turn layer scores into a plan.")
app.command("experts", cls=Command)(allocate_counts.experts)
app.command("ranks", cls=Command)(allocate_counts.ranks)

# The panel of options that count under the map marginal alone, which measures the model.
MARGINAL = "With --map marginal"


@app.command("sparsity", cls=Command)
def sparsity(
    context: typer.Context,
    target: Annotated[
        float,
        typer.Option(
            "--sparsity", help="Fraction of zeros over all projections.", show_default=False
        ),
    ],
    scores: Annotated[
        Path | None,
        typer.Argument(
            help="Run folder of `layerif score`, file of `layerif metric`, or a .json, .csv or "
            ".npy file of one number a layer; none for --map marginal.",
            show_default=False,
        ),
    ] = None,
    map: Annotated[
        PlanMap,
        typer.Option(
            "--map",
            help="How scores become sparsities; marginal measures the pruned model itself, in "
            "rounds.",
        ),
    ] = "layerif",
    granularity: Annotated[
        Granularity | None,
        typer.Option(
            "--granularity",
            help="What gets a sparsity of its own.",
            show_default="layer; projection for marginal",
        ),
    ] = None,
    aggregate: options.Aggregate = "positive",
    epsilon: Annotated[
        float,
        typer.Option("--epsilon", help="Map layerif: half the relative spread of sparsities."),
    ] = 0.1,
    lam: Annotated[
        float | None,
        typer.Option(
            "--lam",
            help="Maps owl and dlp: half the width of the band of sparsities.",
            show_default="0.08 for owl, 0.15 for dlp",
        ),
    ] = None,
    smooth: Annotated[
        bool,
        typer.Option(
            "--smooth/--no-smooth", help="Map layerif: smooth scores over neighbouring layers."
        ),
    ] = True,
    orientation: Annotated[
        Orientation | None,
        typer.Option(
            "--orientation",
            help="direct: high scores are pruned more; inverse: less.",
            show_default="direct for layerif, inverse for owl and dlp",
        ),
    ] = None,
    s_max: Annotated[
        float, typer.Option("--s-max", help="No layer or projection gets more than this.")
    ] = 1.0,
    on_constant: options.ConstantOption = "error",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Model that plain scores belong to, or that marginal measures.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", help="Moves of the plan.", rich_help_panel=MARGINAL)
    ] = 5,
    method: Annotated[
        PruningMethod,
        typer.Option("--method", help="How rounds prune.", rich_help_panel=MARGINAL),
    ] = "wanda",
    on: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Task or corpus whose loss counts.",
            show_default="the calibration text",
            rich_help_panel=MARGINAL,
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option("--tokens", help="Of each round's gradient.", rich_help_panel=MARGINAL),
    ] = 4096,
    held_out_tokens: Annotated[
        int,
        typer.Option(
            "--held-out-tokens",
            help="Calibration text that rounds are judged by.",
            rich_help_panel=MARGINAL,
        ),
    ] = 8192,
    delta: Annotated[
        float,
        typer.Option(
            "--delta",
            help="Half the width of the band of weights, of a projection's.",
            rich_help_panel=MARGINAL,
        ),
    ] = 0.05,
    eta: Annotated[
        float, typer.Option("--eta", help="The first round's step.", rich_help_panel=MARGINAL)
    ] = 0.06,
    below: Annotated[
        float,
        typer.Option(
            "--below", help="None goes further under --sparsity.", rich_help_panel=MARGINAL
        ),
    ] = 0.25,
    above: Annotated[
        float,
        typer.Option("--above", help="None goes further over it.", rich_help_panel=MARGINAL),
    ] = 0.2,
    calibration: Annotated[
        str,
        typer.Option(
            "--calibration",
            help="python-docs, wikitext2, or a text file.",
            rich_help_panel=MARGINAL,
        ),
    ] = "python-docs",
    samples: Annotated[
        int,
        typer.Option(
            "--calibration-samples", help="Chunks of that text.", rich_help_panel=MARGINAL
        ),
    ] = 16,
    context_length: Annotated[
        int,
        typer.Option("--context-length", help="Tokens of a chunk.", rich_help_panel=MARGINAL),
    ] = 512,
    batch_tokens: Annotated[
        int,
        typer.Option("--batch-tokens", help="Tokens run at once.", rich_help_panel=MARGINAL),
    ] = 2048,
    style: Annotated[
        PromptStyle,
        typer.Option("--style", help="Form of a task's prompts.", rich_help_panel=MARGINAL),
    ] = "alpaca",
    template_option: Annotated[
        list[str] | None,
        typer.Option(
            "--template-option",
            metavar="NAME=VALUE",
            help="Variable of the chat template.",
            show_default=False,
            rich_help_panel=MARGINAL,
        ),
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option("--dtype", help="Precision the model runs in.", rich_help_panel=MARGINAL),
    ] = "float32",
    device: Annotated[
        str,
        typer.Option("--device", help="cpu, cuda ..., or auto.", rich_help_panel=MARGINAL),
    ] = "auto",
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    out: PlanOut = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Allocate a sparsity to each layer; weighted by size, their mean is --sparsity exactly.

    With --granularity projection, to each projection of each layer. With --map marginal, by what
    pruning a little more or less really changes at the pruned model (--model), round by round.
    """
    if map == "marginal":
        if scores is not None or model is None:
            raise InputError(
                "the map marginal measures a model and takes no scores: give --model alone"
            )
        from layerif.cli.search import marginal_plan

        plan = marginal_plan(
            model,
            target,
            out=out,
            calibration=calibration,
            target=on,
            method=method,
            granularity=granularity or "projection",
            rounds=rounds,
            delta=delta,
            eta=eta,
            below=below,
            above=above,
            tokens=tokens,
            held_out_tokens=held_out_tokens,
            samples=samples,
            context_length=context_length,
            seed=seed,
            batch_tokens=batch_tokens,
            style=style,
            template_option=template_option,
            dtype=dtype,
            device=device,
            data_dir=data_dir,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
        )
        deliver(context, plan, out, kept=True, overwrite=overwrite, as_json=as_json)
        return
    if scores is None:
        raise InputError(
            f"the map {map} spends scores: give a run folder of `layerif score`, or a file of "
            "scores"
        )
    from layerif.plans.allocate import allocate
    from layerif.plans.score_files import read_scores

    found = read_scores(scores)
    plan = allocate(
        found,
        "sparsity",
        target,
        map=map,
        granularity=granularity or "layer",
        aggregate=aggregate,
        epsilon=epsilon,
        lam=lam,
        smooth=smooth,
        orientation=orientation,
        s_max=s_max,
        on_constant=on_constant,
        model=_describe(model, scores, found, trust_remote_code=trust_remote_code),
    )
    deliver(context, plan, out, overwrite=overwrite, as_json=as_json)


def _describe(
    name: str | None, scores: Path, found: Any, *, trust_remote_code: bool
) -> ModelInfo | None:
    """The shape of the model named, for plain scores; other scores know their own model."""
    if name is None:
        return None
    if hasattr(found, "model"):
        what = "a run folder" if scores.is_dir() else "a file of `layerif metric`"
        raise InputError(f"{scores} is {what}, which knows its model; leave out --model")
    from layerif.model.opening import describe, open_skeleton

    return describe(open_skeleton(name, trust_remote_code=trust_remote_code))
