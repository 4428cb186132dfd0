"""`layerif prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerif.cli import options
from layerif.cli.output import emit, say
from layerif.cli.replay import write_recipe
from layerif.core.choices import HiddenStatesPlace, PruningMethod
from layerif.errors import InputError


def prune(
    context: typer.Context,
    model: options.Model,
    out: options.OutModel,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="Sparsity plan to follow.", show_default=False)
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", help="The same sparsity everywhere, instead of a plan."),
    ] = None,
    method: Annotated[PruningMethod, typer.Option("--method", help="How weights are chosen.")] = (
        "wanda"
    ),
    nm: Annotated[
        str | None,
        typer.Option(
            "--nm",
            help="Pattern N:M, such as 2:4: N of every M inputs kept. With a plan, each "
            "projection's N comes from its own sparsity.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        str,
        typer.Option(
            "--calibration",
            help="python-docs, wikitext2, a text file, a task (its training rows), or self (text "
            "that the model writes). Magnitude reads none.",
        ),
    ] = "python-docs",
    samples: Annotated[
        int, typer.Option("--calibration-samples", help="Chunks of calibration text.")
    ] = 32,
    context_length: options.ContextLength = 512,
    batch_tokens: options.BatchTokens = 2048,
    hidden_states: Annotated[
        HiddenStatesPlace,
        typer.Option(
            "--hidden-states",
            help="Where those between layers are kept; auto: on disk if they fill half the memory.",
        ),
    ] = "auto",
    dtype: options.PruningDtype = "float32",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    data_dir: options.DataDir = None,
    seed: options.Seed = 0,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Prune decoder layer by decoder layer, and write an ordinary Hugging Face model folder.

    The zeros are unstructured unless --nm says otherwise: they make no dense kernel faster. Cut
    short, the same command goes on after its last finished layer.
    """
    from layerif.artifacts import PRUNED, Allocation
    from layerif.core.checkpoint import check_out
    from layerif.data import load_calibration

    check_out(out, PRUNED, overwrite=overwrite)
    if plan is not None and sparsity is not None:
        raise InputError("give either --plan FILE or --sparsity NUMBER, and not both")
    if plan is None and sparsity is None and nm is None:
        raise InputError("give either --plan FILE or --sparsity NUMBER, or --nm N:M")
    wanted = Allocation.load(plan) if plan is not None else sparsity
    reads = method != "magnitude"
    source = load_calibration(calibration, data_dir=data_dir) if reads else None

    from layerif.model.opening import open_model
    from layerif.report import manifest_lines, manifest_table
    from layerif.workflows.stages import prune_into

    opened, tokenizer = open_model(
        model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    manifest = prune_into(
        out,
        opened,
        tokenizer,
        wanted,
        calibration=source,
        options={
            "method": method,
            "nm": nm,
            "samples": samples,
            "context_length": context_length,
            "seed": seed,
            "batch_tokens": batch_tokens,
            "hidden": hidden_states,
        },
        overwrite=overwrite,
    )
    write_recipe(context, out)
    emit(manifest_table(manifest), manifest.model_dump(mode="json"), as_json=as_json)
    for line in manifest_lines(manifest):
        say(line, as_json=as_json)
    say(f"wrote {out}", as_json=as_json)
