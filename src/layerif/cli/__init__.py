"""The command line: parse, call one function, print.

Commands import what they need when they run, so that `layerif --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from layerif.cli.command import ended_politely
from layerif.cli.lazy import LazyGroup
from layerif.core import processes
from layerif.errors import InputError, LayerifError

# Commands that several processes work at together.
SHARED_OUT = ("score", "finetune")


class Commands(LazyGroup):
    """Each is the module of its name."""

    modules = (
        "tasks",
        "score",
        "solve",
        "clean",
        "doctor",
        "metric",
        "allocate",
        "search",
        "prune",
        "validate",
        "compare",
        "verify",
        "merge",
        "finetune",
        "evaluate",
        "run",
        "init",
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
