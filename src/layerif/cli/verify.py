"""`layerif verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.errors import NumericalError

if TYPE_CHECKING:
    from rich.table import Table

    from layerif.compress.pruning.verifying import Verification


def verify(
    folder: Annotated[
        Path, typer.Argument(help="Pruned model folder, with its manifest.", show_default=False)
    ],
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Count a pruned model's zeros in its files, and hold them against its manifest.

    N:M patterns are checked group by group. Exit status 3 where something does not hold.
    """
    from layerif.compress.pruning.verifying import verify as verify_folder

    found = verify_folder(folder, trust_remote_code=trust_remote_code)
    value = {"folder": str(folder), "ok": found.ok, **asdict(found)}
    emit(_table(found, str(folder)), value, as_json=as_json)
    for verdict in found.modules:
        if verdict.fault is not None:
            say(f"{verdict.module} {verdict.fault}", as_json=as_json)
    held = sum(verdict.fault is None for verdict in found.modules)
    say(
        f"{held} of {len(found.modules)} projections are as the manifest says: "
        f"{found.sparsity:.2%} zeros counted, {found.said:.2%} said",
        as_json=as_json,
    )
    if not found.ok:
        raise typer.Exit(NumericalError.exit_code)


def _table(found: Verification, title: str) -> Table:
    """One row a layer."""
    from rich.text import Text

    from layerif.report.tables import plain_table

    table = plain_table(title)
    for column in ("layer", "said", "zeros", "patterns", ""):
        table.add_column(column, justify="right")
    for layer in sorted({verdict.layer for verdict in found.modules}):
        own = [verdict for verdict in found.modules if verdict.layer == layer]
        said, zeros = (
            f"{sum(counts) / sum(v.numel for v in own):.2%}"
            for counts in ([v.said for v in own], [v.zeros or 0 for v in own])
        )
        patterns = " ".join(sorted({v.pattern for v in own if v.pattern}))
        holds = all(verdict.fault is None for verdict in own)
        word = Text("ok", "green") if holds else Text("differs", "bold red")
        table.add_row(str(layer), said, zeros, patterns, word)
    return table
