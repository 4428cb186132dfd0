"""Quantised models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.derived import expanded
from layerif.cli.prune import ChangedModelOptions, OutModel, TextOptions
from layerif.cli.replay import finish
from layerif.compress.quantization.options import QuantizedFolderOptions, reads_text
from layerif.errors import InputError


@expanded
def quantize(
    context: typer.Context,
    model: ChangedModelOptions,
    out: OutModel,
    how: QuantizedFolderOptions,
    text: TextOptions,
    plan: Annotated[Path | None, typer.Option(help="Plan of bits to follow.")] = None,
    bits: Annotated[
        int | None, typer.Option(help="The same bits everywhere, instead of a plan.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Round weights to few bits, decoder layer by decoder layer, and write a model folder.

    The folder holds rounded weights for measuring, or with --format compressed-tensors packed
    integers. Interrupted, the same command goes on after its last finished layer.
    """
    from layerif.artifacts import QUANTIZED, Plan
    from layerif.core.checkpoint import check_out
    from layerif.data import load_calibration

    check_out(out, QUANTIZED, overwrite=overwrite)
    if (plan is None) == (bits is None):
        raise InputError("give either --plan FILE or --bits NUMBER, and not both")
    wanted: Plan | int | None = Plan.load(plan) if plan is not None else bits
    assert wanted is not None
    source = None
    if reads_text(how.values()):
        source = load_calibration(text.calibration, data_dir=text.data_dir)

    from layerif.report.tables import quantized_lines, quantized_table
    from layerif.workflows.stages import quantize_into

    made = quantize_into(
        out, *model.open(), wanted, calibration=source, options=how, overwrite=overwrite
    )
    lines = quantized_lines(made)
    finish(context, out, quantized_table(made), made, *lines, as_json=as_json)
