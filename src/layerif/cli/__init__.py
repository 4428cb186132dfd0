"""The command line: parse, call one function, print.

Commands import what they need when they run, so that `layerif --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from layerif.cli.command import ended_politely
from layerif.cli.lazy import ListedGroup, docstring_of, imported
from layerif.core import processes
from layerif.errors import InputError, LayerifError

# Commands whose work several processes share.
SHARED_OUT = ("score", "finetune")
# The module of each command.
MODULES = {
    "tasks": "tasks",
    "score": "score",
    "solve": "solve",
    "clean": "run",
    "doctor": "doctor",
    "metric": "metric",
    "allocate": "allocate",
    "search": "search",
    "prune": "prune",
    "quantize": "quantize",
    "drop": "drop",
    "validate": "validate",
    "compare": "compare",
    "verify": "verify",
    "merge": "prune",
    "export": "export",
    "finetune": "finetune",
    "evaluate": "evaluate",
    "run": "run",
    "init": "run",
}


class Commands(ListedGroup):
    """The commands of layerif, each imported when it is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            lambda: list(MODULES),
            lambda name: docstring_of(f"layerif.cli.{MODULES[name]}", name),
            lambda name: imported(f"layerif.cli.{MODULES[name]}", name),
            **options,
        )


app = typer.Typer(
    name="layerif",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="How well does each decoder layer of a language model serve a task? "
    "Score the layers, plan a budget by the scores, prune by the plan, and measure the result.",
    epilog="Exit status: 0 done; 2 bad input; 3 a value that is not finite; "
    "4 something to install first; 130 interrupted (143 by SIGTERM); 1 a fault of layerif itself.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"layerif {version('layerif')}")
        raise typer.Exit


@app.callback()
def of_layerif(
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
    except OSError as error:  # the disk's own refusals: full, closed, gone
        where = error.filename
        if where is None and error.strerror is not None:
            # What layerif writes is named where it is written; this is what it was printed to.
            where = "standard output"
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _fail(f"{where}: {error.strerror}" if error.strerror else str(error), 2)


def _fail(message: str, status: int) -> NoReturn:
    from layerif.core.progress import console

    who = f" in process {processes.rank()}" if processes.count() > 1 else ""
    console.print(f"error{who}:", style="bold red", end=" ")
    console.print(message, soft_wrap=True)
    sys.exit(status)
