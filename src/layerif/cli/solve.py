"""`layerif solve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.derived import expanded
from layerif.cli.score import show
from layerif.influence.options import SolveOptions


@expanded
def solve(
    context: typer.Context,
    gradients: Annotated[
        Path,
        typer.Argument(
            help="Run folder of `layerif score --keep-gradients`, or its folder gradients.",
            show_default=False,
        ),
    ],
    out: options.RunFolder,
    how: SolveOptions,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Measure influence by another estimator, damping or block, from gradients that were kept.

    No model is opened or run. The run folder is the one that `layerif score` would write with the
    same options.
    """
    from layerif.artifacts import GRADIENTS, SCORES
    from layerif.artifacts.gradients import GRADIENTS_FOLDER
    from layerif.core.checkpoint import check_out
    from layerif.influence.store import Gradients
    from layerif.workflows.solving import solve_into

    check_out(out, SCORES, overwrite=overwrite)
    inside = gradients / GRADIENTS_FOLDER
    kept = Gradients.open(inside if GRADIENTS.is_finished(inside) else gradients)
    show(context, solve_into(out, kept, how, overwrite=overwrite), out, as_json=as_json)
