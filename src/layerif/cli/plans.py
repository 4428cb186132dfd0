"""What the commands that make plans share: a plan printed, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe
from layerif.core.options import Options
from layerif.errors import InputError

if TYPE_CHECKING:
    from layerif.artifacts import Plan
    from layerif.plans.kinds.base import PlanKind

PlanOut = Annotated[
    Path | None, typer.Option("--out", help="JSON file to write the plan to.", show_default=False)
]


class KindTotal(Options):
    """What a plan gives out in all."""

    title = "Plan"

    @property
    def value(self) -> float:
        """The total, by whatever name its kind has for it."""
        (total,) = self.values().values()
        return total


class SparsityTotal(KindTotal):
    """For sparsity."""

    sparsity: float
    """Fraction of zeros over all projections."""


class CountTotal(KindTotal):
    """For whole numbers."""

    total: int
    """Sum over all layers."""


def total_options(kind: PlanKind) -> type[KindTotal]:
    """The option that says the total of a kind."""
    return SparsityTotal if kind.weighted else CountTotal


def deliver(
    context: typer.Context,
    plan: Plan,
    out: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
    kept: bool = False,
    beside: dict[str, Any] | None = None,
) -> None:
    """Save a plan with its picture, unless it was `kept` already, and print it.

    Args:
        beside: what goes beside the plan in JSON output.
    """
    from layerif.report.plots import leave_picture, plot_plan
    from layerif.report.tables import plan_table

    if out is not None:
        if not kept:
            _keep(plan, out, overwrite=overwrite)
        write_recipe(context, out)
        leave_picture(plot_plan, plan, beside=out)
    emit(plan_table(plan), plan.model_dump(mode="json") | (beside or {}), as_json=as_json)
    if plan.sizes is None and plan.rules.weighted:
        say("No model is named, so all layers count as equally large.", as_json=as_json)
    if out is not None:
        say(f"wrote {out}", as_json=as_json)


def _keep(plan: Plan, out: Path, *, overwrite: bool) -> None:
    """Save a plan, unless the file holds this very plan already; another one is not lost."""
    from layerif.artifacts import Plan
    from layerif.core.checkpoint import check_out

    check_out(out, Plan.file_kind(), overwrite=overwrite)
    if Plan.file_kind().is_finished(out):
        try:
            found = Plan.load(out)
            if found == plan:
                return
            why = plan.differences(found)
        except InputError as error:
            why = str(error)
        if not overwrite:
            raise InputError(
                f"{out} already holds another plan: {why}; choose another --out, or pass "
                "--overwrite to replace it"
            )
    plan.save(out)
