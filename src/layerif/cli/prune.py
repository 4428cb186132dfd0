"""Pruned models: made, counted, and merged with a LoRA."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerif.cli import options
from layerif.cli.derived import expanded
from layerif.cli.output import emit
from layerif.cli.replay import finish
from layerif.compress.pruning.options import PruneOptions
from layerif.core.choices import Dtype
from layerif.data.options import CalibrationOptions
from layerif.data.registry import CORPORA
from layerif.errors import InputError, NumericalError
from layerif.model.options import OpeningOptions, PlacedModelOptions

if TYPE_CHECKING:
    from rich.table import Table

    from layerif.compress.pruning.verifying import Verification

OutModel = Annotated[Path, typer.Option(help="Model folder to write.")]
PrunedFolder = Annotated[Path, typer.Argument(help="Pruned model folder, with its manifest.")]


class RewrittenOptions(OpeningOptions):
    """How a model is opened that is written to another folder."""

    dtype: Dtype = "float32"
    """Precision of the computation. The folder keeps that of the model's files, where it is
    narrower."""


class PrunedModelOptions(RewrittenOptions, PlacedModelOptions):
    """The model that is pruned."""


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
    model: PrunedModelOptions,
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


def verify(
    folder: PrunedFolder,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Count a pruned model's zeros in its files, and compare them with its manifest.

    N:M patterns are checked group by group. Of a model with layers dropped the layers are counted.
    Exit status 3 where something differs.
    """
    from layerif.artifacts import DROPPED

    if DROPPED.is_finished(folder):
        _verify_depth(folder, trust_remote_code=trust_remote_code, as_json=as_json)
        return
    from layerif.compress.pruning.verifying import verify as verify_folder

    found = verify_folder(folder, trust_remote_code=trust_remote_code)
    faults = [f"{each.module} {each.fault}" for each in found.modules if each.fault is not None]
    emit(
        _verified(found, str(folder)),
        {"folder": str(folder), "ok": found.ok, **asdict(found)},
        *faults,
        f"{len(found.modules) - len(faults)} of {len(found.modules)} projections are as the "
        f"manifest says: {found.sparsity:.2%} zeros counted, {found.said:.2%} said",
        as_json=as_json,
    )
    if not found.ok:
        raise typer.Exit(NumericalError.exit_code)


def _verify_depth(folder: Path, *, trust_remote_code: bool, as_json: bool) -> None:
    from layerif.artifacts import DroppedLayers
    from layerif.compress.depth.saving import verify_dropped
    from layerif.report.tables import plan_table

    faults = verify_dropped(folder, trust_remote_code=trust_remote_code)
    manifest = DroppedLayers.of_folder(folder)
    said = f"{len(manifest.kept)} of {manifest.model.layers} layers, as the manifest says"
    value = {"folder": str(folder), "ok": not faults, "faults": faults, "kept": manifest.kept}
    emit(plan_table(manifest.plan), value, *(faults or [said]), as_json=as_json)
    if faults:
        raise typer.Exit(NumericalError.exit_code)


def _verified(found: Verification, title: str) -> Table:
    """One row a layer."""
    from rich.text import Text

    from layerif.report.tables import plain_table

    table = plain_table(title, *(f">{name}" for name in ("layer", "said", "zeros", "patterns", "")))
    for layer in sorted({verdict.layer for verdict in found.modules}):
        own = [verdict for verdict in found.modules if verdict.layer == layer]
        numel = sum(verdict.numel for verdict in own)
        said = f"{sum(verdict.said for verdict in own) / numel:.2%}"
        zeros = f"{sum(verdict.zeros or 0 for verdict in own) / numel:.2%}"
        patterns = " ".join(sorted({verdict.pattern for verdict in own if verdict.pattern}))
        holds = all(verdict.fault is None for verdict in own)
        word = Text("ok", "green") if holds else Text("differs", "bold red")
        table.add_row(str(layer), said, zeros, patterns, word)
    return table
