"""Turn layer scores into a plan of a kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from layerif.cli import options
from layerif.cli.command import Command
from layerif.cli.derived import expanded
from layerif.cli.lazy import ListedGroup, docstring_of, group
from layerif.cli.output import say
from layerif.cli.plans import KindTotal, PlanOut, deliver, total_options
from layerif.core.options import Options, Rule
from layerif.errors import InputError
from layerif.plans.kinds.registry import KINDS


class ExpertOptions(Options):
    """What is trained by a plan of experts."""

    title = "Plan"

    rank: int = 8
    """With --model: rank of each expert, for the number of trainable parameters."""


class Kinds(ListedGroup):
    """A command for every kind of plan, with the options of its maps."""

    def list_commands(self, ctx: Any) -> list[str]:
        return KINDS.names()

    def help_of(self, name: str) -> str:
        module = KINDS.module_of(name)
        words = "" if module is None else docstring_of(module, name).partition(":")[2].strip()
        return words[:1].upper() + words[1:]

    def load(self, name: str) -> Any:
        kind = KINDS.find(name)
        command = expanded(
            plan,
            rules=RULES,
            total=total_options(kind),
            how=kind.options,
            trained=ExpertOptions if name == "experts" else Options,
        )
        single = group()
        single.command(name, cls=Command, help=f"{plan.__doc__}\n\n{self.help_of(name)}")(command)
        return typer.main.get_command(single)


app = group(cls=Kinds, no_args_is_help=True, help=__doc__)

RULES = (
    Rule("rank", lambda v: v.get("model") is not None, "with {model}"),
    Rule("trust_remote_code", lambda v: v.get("model") is not None, "with {model}"),
    Rule("overwrite", lambda v: v.get("out") is not None, "with {out}"),
)


@app.callback()
def of_any_kind() -> None:
    """Options of no kind."""


def plan(
    context: typer.Context,
    scores: Annotated[
        Path,
        typer.Argument(
            help="Run folder of `layerif score`, file of `layerif metric`, or a .json, .csv or "
            ".npy file of one number a layer.",
            show_default=False,
        ),
    ],
    total: KindTotal,
    how: Options,
    trained: Options,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Model that plain scores belong to.", show_default=False),
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    out: PlanOut = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Allocate a level to each layer, or projection, whose total is kept exactly."""
    from layerif.plans.allocate import allocate
    from layerif.plans.score_files import read_scores

    kind, found = context.info_name or "", read_scores(scores)
    skeleton, described = None, None
    if model is not None:
        from layerif.model.opening import describe, open_skeleton

        if hasattr(found, "model") and KINDS.find(kind).weighted:
            what = "a run folder" if scores.is_dir() else "a file of `layerif metric`"
            raise InputError(f"{scores} is {what}, which knows its model; leave out --model")
        skeleton = open_skeleton(model, trust_remote_code=trust_remote_code)
        described = None if hasattr(found, "model") else describe(skeleton)
    made = allocate(found, kind, total.value, how, model=described)  # type: ignore[arg-type]
    beside: dict[str, Any] = {}
    lines: list[str] = []
    if skeleton is not None and KINDS.find(kind).ranks is not None:
        from layerif.adapters import trained_beside_lora

        rank = getattr(trained, "rank", None)
        counted = trained_beside_lora(made, skeleton, rank=rank)
        beside, lora = {"trainable": counted}, counted["plain_lora"]
        what = "LoRA of these ranks" if rank is None else f"LoRA experts of rank {rank} and routers"
        lines = [
            f"{what}: {counted['parameters']:,} trainable parameters; plain LoRA of rank "
            f"{lora['rank']} in every layer, the nearest equal total of ranks: "
            f"{lora['parameters']:,}."
        ]
    deliver(context, made, out, overwrite=overwrite, as_json=as_json, beside=beside)
    for line in lines:
        say(line, as_json=as_json)
