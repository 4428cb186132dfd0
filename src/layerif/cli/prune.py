"""Pruned models: made, and merged with a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.derived import expanded
from layerif.cli.replay import finish
from layerif.compress.pruning.options import PruneOptions
from layerif.core.choices import Dtype
from layerif.data.options import CalibrationOptions
from layerif.data.registry import CORPORA
from layerif.errors import InputError
from layerif.model.options import OpeningOptions, PlacedModelOptions

OutModel = Annotated[Path, typer.Option(help="Model folder to write.")]
PrunedFolder = Annotated[Path, typer.Argument(help="Pruned model folder, with its manifest.")]


class RewrittenOptions(OpeningOptions):
    """How a model is opened that is written to another folder."""

    dtype: Dtype = "float32"
    """Precision of the computation. The folder keeps that of the model's files, where it is
    narrower."""


class ChangedModelOptions(RewrittenOptions, PlacedModelOptions):
    """The model that is changed."""


class TextOptions(CalibrationOptions):
    """What statistics are taken on."""

    calibration: Annotated[str, CORPORA] = "python-docs"
    """Magnitude reads none. A text file, a task (its training rows), self (text that the model
    writes), or a corpus."""
    data_dir: Path | None = None
    """Folder of parquet data sets, instead of the hub."""


@expanded
def prune(
    context: typer.Context,
    model: ChangedModelOptions,
    out: OutModel,
    how: PruneOptions,
    text: TextOptions,
    plan: Annotated[Path | None, typer.Option(help="Sparsity plan to follow.")] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="The same sparsity everywhere, instead of a plan.")
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

    made = prune_into(
        out, *model.open(), wanted, calibration=source, options=how, overwrite=overwrite
    )
    lines = manifest_lines(made)
    finish(context, out, manifest_table(made), made, *lines, as_json=as_json)


@expanded
def merge(
    context: typer.Context,
    model: PrunedFolder,
    adapter: Annotated[Path, typer.Option(help="Folder of a LoRA that PEFT wrote.")],
    out: OutModel,
    *,
    adapter_name: Annotated[
        str, typer.Option(help="Which one, where the folder holds several.")
    ] = "default",
    force: Annotated[
        bool, typer.Option("--force", help="Merge an adapter trained on another model, too.")
    ] = False,
    opening: RewrittenOptions,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Merge a LoRA trained on a pruned model into its weights, and keep the zeros.

    What the LoRA adds where the pruned weights are zero is lost, so measure the outcome. A model
    with layers dropped is merged as it is.
    """
    from layerif.artifacts import DroppedLayers
    from layerif.compress.pruning.merging import merge_into
    from layerif.report.tables import dropped_lines, manifest_table, plan_table

    made = merge_into(
        out,
        model,
        adapter,
        adapter_name=adapter_name,
        force=force,
        overwrite=overwrite,
        **opening.values(),
    )
    if isinstance(made, DroppedLayers):
        finish(context, out, plan_table(made.plan), made, *dropped_lines(made), as_json=as_json)
        return
    finish(context, out, manifest_table(made), made, as_json=as_json)
