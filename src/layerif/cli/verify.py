"""Changed models counted: whether their files hold what their manifests say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerif.cli import options
from layerif.cli.output import emit
from layerif.errors import NumericalError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from layerif.compress.pruning.verifying import Verification
    from layerif.compress.quantization.verifying import QuantizedVerification

ChangedFolder = Annotated[
    Path, typer.Argument(help="Folder of a changed model, with its manifest.")
]


def verify(
    folder: ChangedFolder,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Count a changed model in its files, and compare it with its manifest.

    Of a pruned model the zeros, and N:M patterns group by group; of a quantised one the values of
    each group, and the bytes; of one with layers dropped the layers. Exit status 3 where something
    differs.
    """
    from layerif.artifacts import DROPPED, QUANTIZED
    from layerif.compress.pruning.verifying import verify as verify_pruned
    from layerif.compress.quantization.verifying import verify_quantized

    if DROPPED.is_finished(folder):
        _verify_depth(folder, trust_remote_code=trust_remote_code, as_json=as_json)
        return
    found: Verification | QuantizedVerification
    if QUANTIZED.is_finished(folder):
        found = verify_quantized(folder, trust_remote_code=trust_remote_code)
        table = _quantized(found, str(folder))
        counted = f"{found.bytes:,} bytes of projections counted, {found.said:,} said"
    else:
        found = verify_pruned(folder, trust_remote_code=trust_remote_code)
        table = _pruned(found, str(folder))
        counted = f"{found.sparsity:.2%} zeros counted, {found.said:.2%} said"
    faults = [f"{each.module} {each.fault}" for each in found.modules if each.fault is not None]
    emit(
        table,
        {"folder": str(folder), "ok": found.ok, **asdict(found)},
        *faults,
        f"{len(found.modules) - len(faults)} of {len(found.modules)} matrices are as the "
        f"manifest says: {counted}",
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


def _pruned(found: Verification, title: str) -> Table:
    """One row a layer."""
    from layerif.report.tables import plain_table

    table = plain_table(title, *(f">{name}" for name in ("layer", "said", "zeros", "patterns", "")))
    for layer in sorted({verdict.layer for verdict in found.modules}):
        own = [verdict for verdict in found.modules if verdict.layer == layer]
        numel = sum(verdict.numel for verdict in own)
        said = f"{sum(verdict.said for verdict in own) / numel:.2%}"
        zeros = f"{sum(verdict.zeros or 0 for verdict in own) / numel:.2%}"
        patterns = " ".join(sorted({verdict.pattern for verdict in own if verdict.pattern}))
        table.add_row(str(layer), said, zeros, patterns, _word(verdict.fault for verdict in own))
    return table


def _quantized(found: QuantizedVerification, title: str) -> Table:
    """One row a layer, and one for embeddings and head."""
    from layerif.report.tables import plain_table

    table = plain_table(title, *(f">{name}" for name in ("layer", "bits", "values", "bytes", "")))
    places = {verdict.layer for verdict in found.modules}
    for layer in sorted(places, key=lambda each: (each is None, each)):
        own = [verdict for verdict in found.modules if verdict.layer == layer]
        bits, values = (
            " ".join(map(str, sorted({each for each in column if each is not None})))
            for column in ((v.bits for v in own), (v.values for v in own))
        )
        size = f"{sum(verdict.bytes for verdict in own):,}"
        name = "embeddings" if layer is None else str(layer)
        table.add_row(name, bits, values, size, _word(verdict.fault for verdict in own))
    return table


def _word(faults: Iterable[str | None]) -> Text:
    from rich.text import Text

    holds = all(fault is None for fault in faults)
    return Text("ok", "green") if holds else Text("differs", "bold red")
