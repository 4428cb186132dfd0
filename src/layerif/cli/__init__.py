"""The command line: parse, call one function, print.

Commands import what they need when they run, so that `layerif --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from layerif.cli import (
    allocate,
    compare,
    doctor,
    evaluate,
    finetune,
    init,
    merge,
    metric,
    prune,
    run,
    score,
    tasks,
    validate,
    verify,
)
from layerif.cli.command import Command, ended_politely
from layerif.core import processes
from layerif.errors import InputError, LayerifError

# Commands that several processes work at together.
SHARED_OUT = ("score", "finetune")

app = typer.Typer(
    name="layerif",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="How well does each decoder layer of a language model serve a task? "
    "Score the layers, plan a budget by the scores, prune by the plan, and measure the result.",
    epilog="Exit status: 0 done; 2 bad input; 3 a value that is not finite; "
    "4 something to install first; 130 interrupted (143 by SIGTERM); 1 a fault of layerif itself.",
)
app.add_typer(tasks.app, name="tasks")
app.command("score", cls=Command)(score.score)
app.command("doctor", cls=Command)(doctor.doctor)
app.command("metric", cls=Command)(metric.metric)
app.add_typer(allocate.app, name="allocate")
app.command("prune", cls=Command)(prune.prune)
app.command("validate", cls=Command)(validate.validate)
app.add_typer(compare.app, name="compare")
app.command("verify", cls=Command)(verify.verify)
app.command("merge", cls=Command)(merge.merge)
app.command("finetune", cls=Command)(finetune.finetune)
app.command("evaluate", cls=Command)(evaluate.evaluate)
app.command("run", cls=Command)(run.run)
app.command("init", cls=Command)(init.init)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"layerif {version('layerif')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of layerif itself."""
    command = context.invoked_subcommand
    if processes.count() > 1 and command not in SHARED_OUT:
        raise InputError(
            f"`layerif {command}` works in one process, and {processes.count()} were started; "
            "start it without torchrun or accelerate launch, which share out "
            f"{' and '.join(f'`layerif {name}`' for name in SHARED_OUT)} alone"
        )


def main() -> None:
    """Entry point: errors a user can act on become one paragraph and an exit status."""
    try:
        try:
            with ended_politely():
                app()
        finally:
            sys.stdout.flush()
    except LayerifError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        # The disk's own refusals: full, closed, gone.
        _fail(_in_words(error), 2)


def _in_words(error: OSError) -> str:
    if error.filename is not None or error.strerror is None:
        return f"{error.filename}: {error.strerror}" if error.strerror else str(error)
    # What layerif writes is named where it is written; this is what it was printed to.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return f"standard output: {error.strerror}"


def _fail(message: str, status: int) -> NoReturn:
    from layerif.core.progress import console

    who = f" in process {processes.rank()}" if processes.count() > 1 else ""
    console.print(f"error{who}:", style="bold red", end=" ")
    console.print(message, soft_wrap=True)
    sys.exit(status)
