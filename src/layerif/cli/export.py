"""Write a plan in the words of an engine, or an adapter that every engine reads alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from layerif.cli import options
from layerif.cli.derived import expanded
from layerif.cli.lazy import ListedGroup, docstring_of, single
from layerif.cli.output import emit
from layerif.cli.replay import finish
from layerif.core.options import Options
from layerif.core.progress import note
from layerif.export.lora import LoraExportOptions
from layerif.export.registry import EXPORTS

LORA = "lora"


def export(
    context: typer.Context,
    plan: Annotated[Path, typer.Argument(help="JSON file of the plan.")],
    how: Options,
    model: Annotated[
        str | None, typer.Option(help="Model that the plan is for; by default the one it names.")
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    out: Annotated[
        Path | None, typer.Option(help="File to write to; by default it is printed.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a plan as a file that an engine reads.

    Where the engine's own rules make the file differ from the plan, a line says so.
    """
    from layerif.artifacts import Plan
    from layerif.export.exporting import check_new, export_into, export_plan

    if out is not None:
        check_new(out)
    engine = context.info_name or ""
    written = export_plan(
        engine, Plan.load(plan), model, options=how, trust_remote_code=trust_remote_code
    )
    if out is not None:
        written = export_into(out, written)
    for line in written.notes:
        note(line)
    lines = [f"the model's tensors take {written.bytes:,} bytes"] if written.bytes else []
    value = {
        "engine": engine,
        "text": written.text,
        "usage": written.usage,
        "notes": written.notes,
        "bytes": written.bytes,
    }
    if out is None and not as_json:
        print(written.text, end="")
        for line in (*lines, written.usage.replace("{file}", "FILE")):
            note(line)
        return
    finish(context, out, None, value, *lines, written.usage, as_json=as_json)


@expanded
def lora(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA that PEFT wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to write the adapter to.")],
    how: LoraExportOptions,
    as_json: options.Json = False,
) -> None:
    """Write a LoRA with one rank and one alpha, which every engine scales alike.

    Mixed ranks, as a plan of ranks gives, are read with a wrong scale by llama.cpp and vLLM, which
    know no alpha_pattern. Zeros make the ranks equal, and change nothing that the adapter does.
    """
    from layerif.export.lora import export_lora

    made = export_lora(adapter, out, options=how)
    low, high = min(made.ranks.values()), max(made.ranks.values())
    emit(
        None,
        made,
        f"{len(made.ranks)} matrices of rank {low} to {high} have rank "
        f"{made.rank if how.pad else f'{low} to {high}'} and lora_alpha {made.lora_alpha:g}",
        f"wrote {out}",
        as_json=as_json,
    )


def _purpose(name: str) -> str:
    """What an engine is given, by the docstring of its module."""
    if name == LORA:
        return docstring_of(__name__, LORA)
    module = EXPORTS.module_of(name)
    return "" if module is None else docstring_of(module, "").partition("\n")[0]


def _command(name: str) -> Any:
    """The command of an engine, with its options."""
    if name == LORA:
        return single(lora, name)
    command = expanded(
        export,
        rules=(options.beside("trust_remote_code", "model"),),
        how=EXPORTS.find(name).options,
    )
    return single(command, name, help=f"{export.__doc__}\n\n{_purpose(name)}")


app = ListedGroup(lambda: [*EXPORTS.names(), LORA], _purpose, _command, help=__doc__)
