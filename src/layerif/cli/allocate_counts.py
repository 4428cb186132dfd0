"""`layerif allocate experts` and `layerif allocate ranks`: plans of whole numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerif.cli import options
from layerif.cli.output import say
from layerif.cli.plans import PlanOut, deliver
from layerif.core.choices import CountsCompat, CountsMap, ScoreScale
from layerif.errors import InputError

if TYPE_CHECKING:
    from layerif.artifacts import Allocation

Scores = Annotated[
    Path,
    typer.Argument(
        help="Run folder of `layerif score`, file of `layerif metric`, or a .json, .csv or .npy "
        "file of one number a layer.",
        show_default=False,
    ),
]
Map = Annotated[CountsMap, typer.Option("--map", help="How scores become whole numbers.")]
Beta = Annotated[float, typer.Option("--beta", help="Map power: the exponent.")]
Normalise = Annotated[
    ScoreScale,
    typer.Option(
        "--normalise",
        help="Map power: what is raised to beta; none takes scores as they are (AlphaLoRA).",
    ),
]
Compat = Annotated[
    CountsCompat,
    typer.Option(
        "--compat", help="Map power: authors rounds as the published code of AlphaLoRA does."
    ),
]
Shape = Annotated[
    str, typer.Option("--shape", help="Map mola: what each group of layers gets, to scale.")
]
ModelOfPlan = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Model that the scores are of: says how many parameters are trained.",
        show_default=False,
    ),
]


def experts(
    context: typer.Context,
    scores: Scores,
    total: Annotated[
        int, typer.Option("--total", help="Experts of all layers together.", show_default=False)
    ],
    map: Map = "power",
    aggregate: options.Aggregate = "positive",
    beta: Beta = 3.0,
    orientation: options.OrientationOption = "direct",
    normalise: Normalise = "minmax",
    compat: Compat = "none",
    shape: Shape = "2-4-6-8",
    on_constant: options.ConstantOption = "error",
    model: ModelOfPlan = None,
    trust_remote_code: options.TrustRemoteCode = False,
    rank: Annotated[
        int, typer.Option("--rank", min=1, help="With --model: rank of each expert.")
    ] = 8,
    out: PlanOut = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Allocate a number of LoRA experts to each layer, at least one each, --total in all."""
    from layerif.plans.allocate import allocate
    from layerif.plans.score_files import read_scores

    found = read_scores(scores)
    skeleton = _skeleton(model, trust_remote_code=trust_remote_code)
    plan = allocate(
        found,
        "experts",
        total,
        map=map,
        aggregate=aggregate,
        beta=beta,
        orientation=orientation,
        normalise=normalise,
        compat=compat,
        shape=_parse_shape(shape),
        on_constant=on_constant,
        model=_described(skeleton, found),
    )
    _deliver(context, plan, out, skeleton=skeleton, rank=rank, overwrite=overwrite, as_json=as_json)


def ranks(
    context: typer.Context,
    scores: Scores,
    total: Annotated[
        int, typer.Option("--total", help="Ranks of all layers together.", show_default=False)
    ],
    map: Map = "power",
    aggregate: options.Aggregate = "positive",
    beta: Beta = 3.0,
    orientation: options.OrientationOption = "direct",
    normalise: Normalise = "minmax",
    compat: Compat = "none",
    shape: Shape = "2-4-6-8",
    on_constant: options.ConstantOption = "error",
    model: ModelOfPlan = None,
    trust_remote_code: options.TrustRemoteCode = False,
    out: PlanOut = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Allocate a LoRA rank to each layer, at least 1 each, --total in all."""
    from layerif.plans.allocate import allocate
    from layerif.plans.score_files import read_scores

    found = read_scores(scores)
    skeleton = _skeleton(model, trust_remote_code=trust_remote_code)
    plan = allocate(
        found,
        "ranks",
        total,
        map=map,
        aggregate=aggregate,
        beta=beta,
        orientation=orientation,
        normalise=normalise,
        compat=compat,
        shape=_parse_shape(shape),
        on_constant=on_constant,
        model=_described(skeleton, found),
    )
    _deliver(context, plan, out, skeleton=skeleton, overwrite=overwrite, as_json=as_json)


def _skeleton(name: str | None, *, trust_remote_code: bool) -> Any:
    """The model named, without its weights."""
    if name is None:
        return None
    from layerif.model.opening import open_skeleton

    return open_skeleton(name, trust_remote_code=trust_remote_code)


def _described(skeleton: Any, found: Any) -> Any:
    """The shape of the model named, for plain scores; other scores know their own model."""
    if skeleton is None or hasattr(found, "model"):
        return None
    from layerif.model.opening import describe

    return describe(skeleton)


def _parse_shape(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split("-")]
    except ValueError:
        raise InputError(
            f"{text!r} is not a shape; give a number for each group of layers, like 2-4-6-8"
        ) from None


def _deliver(
    context: typer.Context,
    plan: Allocation,
    out: Path | None,
    *,
    skeleton: Any,
    rank: int | None = None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Save and print a plan, with what it trains where the model is known."""
    if skeleton is None:
        deliver(context, plan, out, overwrite=overwrite, as_json=as_json)
        return
    from layerif.adapters import trained_beside_lora

    trained = trained_beside_lora(plan, skeleton, rank=rank)
    deliver(context, plan, out, overwrite=overwrite, as_json=as_json, beside={"trainable": trained})
    lora = trained["plain_lora"]
    what = "LoRA of these ranks" if rank is None else f"LoRA experts of rank {rank} and routers"
    say(
        f"{what}: {trained['parameters']:,} trainable parameters; plain LoRA of rank "
        f"{lora['rank']} in every layer, the nearest equal total of ranks: {lora['parameters']:,}.",
        as_json=as_json,
    )
