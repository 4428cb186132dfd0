"""`layerif finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerif.cli import options
from layerif.cli.derived import with_rules
from layerif.cli.replay import finish
from layerif.core.options import Rule
from layerif.data.options import LearntOptions, tasks_among
from layerif.finetuning.options import FinetuneOptions, PlannedOptions, RowOptions
from layerif.model.options import PlacedModelOptions

if TYPE_CHECKING:
    from layerif.data.rows import Rows


@with_rules(Rule("append_eos", lambda v: bool(tasks_among(v)), "for tasks"))
def finetune(
    context: typer.Context,
    model: PlacedModelOptions,
    task: LearntOptions,
    rows: RowOptions,
    out: options.OutFolder,
    how: PlannedOptions,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Plan of experts or of ranks, from `layerif allocate`.",
            show_default="LoRA of one rank",
        ),
    ] = None,
    preset: options.PresetOption = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Train an adapter on a task: mixtures of LoRA experts or ranks by a plan, or plain LoRA.

    The loss is of completions alone; of running text, in chunks of --max-length tokens, it is of
    every token. The folder is an adapter as PEFT saves it, with its record beside it; --dtype is of
    the frozen model, the adapter is in float32. Interrupted, the same command goes on after the
    last whole checkpoint. `torchrun -m layerif finetune ...` shares every batch out over processes,
    which all have to see the folder.
    """
    from layerif.artifacts import ADAPTER, Plan
    from layerif.core.checkpoint import check_out
    from layerif.data import Corpus, Task

    chosen = None if plan is None else Plan.load(plan)
    check_out(out, ADAPTER, overwrite=overwrite)
    data = task.load(model.model, trust_remote_code=model.trust_remote_code)
    train: Rows
    measured: Rows
    if isinstance(data, Task):  # refused before weights are loaded
        train, measured = rows.rows(data, how.seed)

    from layerif.data.rows import text_rows
    from layerif.report.tables import finetuning_table
    from layerif.workflows.finetuning import finetune_into

    opened, tokenizer = model.open()
    if isinstance(data, Corpus):
        size = {"max_length": how.max_length, "seed": how.seed}
        train, measured = text_rows(opened, tokenizer, data, rows.wanted(), **size)
    record = finetune_into(
        out,
        opened,
        tokenizer,
        data,
        train=train,
        validation=measured,
        plan=chosen,
        options=how.part(FinetuneOptions),
        overwrite=overwrite,
    )
    finish(context, out, finetuning_table(record), record, as_json=as_json)
