"""`layerif merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe


def merge(
    context: typer.Context,
    model: Annotated[
        Path, typer.Argument(help="Pruned model folder, with its manifest.", show_default=False)
    ],
    adapter: Annotated[
        Path,
        typer.Option("--adapter", help="Folder of a LoRA that PEFT wrote.", show_default=False),
    ],
    out: options.OutModel,
    adapter_name: options.AdapterName = "default",
    force: Annotated[
        bool, typer.Option("--force", help="Merge an adapter trained on another model, too.")
    ] = False,
    dtype: options.PruningDtype = "float32",
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Merge a LoRA trained on a pruned model into its weights, and keep the zeros.

    What the LoRA adds where the pruned weights are zero is lost, so measure the outcome.
    """
    from layerif.compress.pruning.merging import merge_into
    from layerif.report.tables import manifest_table

    manifest = merge_into(
        out,
        model,
        adapter,
        adapter_name=adapter_name,
        force=force,
        overwrite=overwrite,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    write_recipe(context, out)
    emit(manifest_table(manifest), manifest.model_dump(mode="json"), as_json=as_json)
    say(f"wrote {out}", as_json=as_json)
