"""The table of a fine-tuning run, from its record alone."""

from __future__ import annotations

from rich.table import Table

from layerif.artifacts import Finetuning
from layerif.report.plots import task_name
from layerif.report.tables import plain_table

ROWS = 12
NAMES = {"lora": "LoRA", "lora_moe": "a mixture of LoRA experts"}


def finetuning_table(record: Finetuning) -> Table:
    """The losses as training went; of a long run, a dozen rows and that of the adapter kept.

    The training loss is the mean over the steps since the row above.
    """
    measured = {entry.step: entry.loss for entry in record.evaluations}
    table = plain_table(
        f"{record.model.name} fine-tuned on {task_name(record.task)}: "
        f"{NAMES[record.method]}, {record.trainable_parameters:,} trainable parameters",
        *(">step", ">training loss", *([">validation loss"] if measured else [])),
    )
    steps = sorted(measured) or [entry.step for entry in record.losses]
    shown = {steps[round(i * (len(steps) - 1) / (ROWS - 1))] for i in range(ROWS)}
    if record.best_step is not None:
        shown.add(record.best_step)
    above = 0
    for step in sorted(shown):
        since = [e.loss for e in record.losses if above < e.step <= step]
        kept = " (kept)" if step == record.best_step else ""
        row = [f"{step}", f"{sum(since) / len(since):.4f}" if since else ""]
        table.add_row(*row, *([f"{measured[step]:.4f}{kept}"] if measured else []))
        above = step
    return table
