"""Drop the layers that a plan of depth drops, and write an ordinary model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.derived import expanded
from layerif.cli.prune import ChangedModelOptions, OutModel
from layerif.cli.replay import finish


@expanded
def drop(
    context: typer.Context,
    model: ChangedModelOptions,
    plan: Annotated[Path, typer.Option(help="Plan of depth to follow.")],
    out: OutModel,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Drop the layers of a plan of depth, and write an ordinary Hugging Face model folder.

    Every setting that goes layer by layer is cut alike and layers are renumbered. Before anything
    is written, the model is compared with the one that passes over these layers; an architecture
    whose configuration cannot say what is left is refused. Nothing is trained.
    """
    from layerif.artifacts import DROPPED, Plan
    from layerif.core.checkpoint import check_out

    check_out(out, DROPPED, overwrite=overwrite)
    wanted = Plan.load(plan)

    from layerif.report.tables import dropped_lines, plan_table
    from layerif.workflows.dropping import drop_into

    wanted.kept_layers()
    made = drop_into(out, *model.open(), wanted, overwrite=overwrite)
    finish(context, out, plan_table(wanted), made, *dropped_lines(made), as_json=as_json)
