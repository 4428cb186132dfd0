"""`layerif prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.derived import expanded
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe
from layerif.compress.pruning.options import PruneOptions
from layerif.core.choices import Dtype
from layerif.data.options import CalibrationOptions
from layerif.errors import InputError
from layerif.model.options import PlacedModelOptions


class PrunedModelOptions(PlacedModelOptions):
    """The model that is pruned."""

    dtype: Dtype = "float32"
    """Precision of the computation. The folder keeps that of the model's files, where it is
    narrower."""


class TextOptions(CalibrationOptions):
    """What statistics are taken on."""

    calibration: str = "python-docs"
    """python-docs, wikitext2, a text file, a task (its training rows), or self (text that the model
    writes). Magnitude reads none."""
    data_dir: Path | None = None
    """Folder of parquet data sets, instead of the hub."""


@expanded
def prune(
    context: typer.Context,
    model: PrunedModelOptions,
    out: options.OutModel,
    how: PruneOptions,
    text: TextOptions,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="Sparsity plan to follow.", show_default=False)
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", help="The same sparsity everywhere, instead of a plan."),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Prune decoder layer by decoder layer, and write an ordinary Hugging Face model folder.

    The zeros are unstructured unless --nm says otherwise: they make no dense kernel faster.
    Interrupted, the same command goes on after its last finished layer.
    """
    from layerif.artifacts import PRUNED, Plan
    from layerif.compress.pruning.registry import reads_text
    from layerif.core.checkpoint import check_out
    from layerif.data import load_calibration

    check_out(out, PRUNED, overwrite=overwrite)
    if plan is not None and sparsity is not None:
        raise InputError("give either --plan FILE or --sparsity NUMBER, and not both")
    if plan is None and sparsity is None and how.nm is None:
        raise InputError("give either --plan FILE or --sparsity NUMBER, or --nm N:M")
    wanted = Plan.load(plan) if plan is not None else sparsity
    source = None
    if reads_text(how.method):
        source = load_calibration(text.calibration, data_dir=text.data_dir)

    from layerif.report.tables import manifest_lines, manifest_table
    from layerif.workflows.stages import prune_into

    opened, tokenizer = model.open()
    manifest = prune_into(
        out, opened, tokenizer, wanted, calibration=source, options=how, overwrite=overwrite
    )
    write_recipe(context, out)
    emit(manifest_table(manifest), manifest.model_dump(mode="json"), as_json=as_json)
    for line in manifest_lines(manifest):
        say(line, as_json=as_json)
    say(f"wrote {out}", as_json=as_json)
