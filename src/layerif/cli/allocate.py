"""Turn layer scores into a plan: of sparsity, bits, depth, experts or ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerif.cli import options
from layerif.cli.derived import expanded
from layerif.cli.lazy import ListedGroup, docstring_of, single
from layerif.cli.replay import finish
from layerif.core.options import Options
from layerif.errors import InputError
from layerif.plans.kinds.registry import KINDS

if TYPE_CHECKING:
    from layerif.artifacts import Plan
    from layerif.plans.kinds.base import PlanKind

PlanOut = Annotated[Path | None, typer.Option(help="JSON file to write the plan to.")]


class KindTotal(Options):
    """What a plan gives out in all."""

    title = "Plan"

    @property
    def value(self) -> float:
        """The total, by whatever name its kind has for it."""
        (total,) = self.values().values()
        return total

    def of(self, model: Any, options: Any) -> float:
        """The total for a model, where it depends on that."""
        return self.value


class SparsityTotal(KindTotal):
    """For sparsity."""

    sparsity: float
    """Fraction of zeros over all projections."""


class BitsTotal(KindTotal):
    """For bits."""

    bits: float
    """Mean bits of a weight over all projections, scales aside."""


class CountTotal(KindTotal):
    """For whole numbers."""

    total: int
    """Sum over all layers."""


def total_options(kind: PlanKind) -> type[KindTotal]:
    """The option that says the total of a kind."""
    if kind.name == "bits":
        return BitsTotal
    return SparsityTotal if kind.weighted else CountTotal


class ExpertOptions(Options):
    """What is trained by a plan of experts."""

    title = "Plan"

    rank: int = 8
    """With --model: rank of each expert, for the number of trainable parameters."""


def plan(
    context: typer.Context,
    scores: Annotated[
        Path,
        typer.Argument(
            help="Run folder of `layerif score`, file of `layerif metric`, or a .json, .csv or "
            ".npy file of one number a layer."
        ),
    ],
    total: KindTotal,
    how: Options,
    trained: Options,
    model: Annotated[str | None, typer.Option(help="Model that plain scores belong to.")] = None,
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
    if out is not None:
        _keep(made, out, overwrite=overwrite)
    deliver(context, made, out, *lines, beside=beside, as_json=as_json)


def _keep(plan: Plan, out: Path, *, overwrite: bool) -> None:
    """Save a plan, unless the file holds this very plan already; another one is not lost."""
    from layerif.artifacts import Plan
    from layerif.core.checkpoint import check_out
    from layerif.workflows.stage import Stage

    kind = Plan.file_kind()
    check_out(out, kind, overwrite=overwrite)
    # A plan is compared as a whole: it says itself what it was made from.
    stage = Stage(kind, Plan.load, made_from=lambda plan: plan)
    if stage.found(out, plan, overwrite=overwrite) is None:
        plan.save(out)


def deliver(
    context: typer.Context,
    plan: Plan,
    out: Path | None,
    *lines: str,
    beside: dict[str, Any] | None = None,
    as_json: bool,
) -> None:
    """Print a plan, saved at `out` or not, and draw it.

    Args:
        beside: what goes beside the plan in JSON output.
    """
    from layerif.report.plots import leave_picture, plot_plan
    from layerif.report.tables import plan_table

    if out is not None:
        leave_picture(plot_plan, plan, beside=out)
    if plan.sizes is None and plan.rules.weighted:
        lines = ("No model is named, so all layers count as equally large.", *lines)
    value = plan.model_dump(mode="json") | (beside or {})
    finish(context, out, plan_table(plan), value, *lines, as_json=as_json)


def _purpose(name: str) -> str:
    """What a kind of plan is for, by the docstring of its module."""
    module = KINDS.module_of(name)
    words = "" if module is None else docstring_of(module, name).partition(":")[2].strip()
    return words[:1].upper() + words[1:]


def _command(name: str) -> Any:
    """The command of a kind, with the options of its maps."""
    kind = KINDS.find(name)
    command = expanded(
        plan,
        rules=(
            options.beside("rank trust_remote_code", "model"),
            options.beside("overwrite", "out"),
        ),
        total=total_options(kind),
        how=kind.options,
        trained=ExpertOptions if name == "experts" else Options,
    )
    return single(command, name, help=f"{plan.__doc__}\n\n{_purpose(name)}")


app = ListedGroup(KINDS.names, _purpose, _command, help=__doc__)
