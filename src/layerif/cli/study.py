"""Studies: recipes of several commands that share a model and a folder.

    model: smollm2
    out: runs/study
    steps:
      - {command: score, task: mrpc, out: "{out}/mrpc"}
      - {command: compare sparsity, sparsity: 0.5, scores: "{out}/mrpc", out: "{out}/wanda"}

An option beside the steps is passed to each command that has it; a step's own value wins, and null
leaves the option out. `{out}` is the study's folder. Finished results are reused, so an interrupted
study continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from layerif.cli.command import parameters
from layerif.cli.replay import COMMAND, Call, command_of, refuse_commanded
from layerif.core.progress import note
from layerif.errors import FieldError

if TYPE_CHECKING:
    from layerif.workflows.document import Document

STEPS = "steps"
OUT = "{out}"


def follow(context: typer.Context, document: Document, changed: Mapping[str, Any]) -> int:
    """Run the commands of a study, one after the other, as far as all succeed.

    Args:
        context: of the command that follows it; its root is the command line.
        document: the study.
        changed: options that were given to `layerif run` and take the place of the study's.

    Returns:
        The exit status of the last command that ran.

    Raises:
        FieldError: there is no such command or option, one is missing or has no effect, before the
            first step runs; or a value that a command does not take, when it runs. With the line.
    """
    shared = {n: v for n, v in document.value.items() if n != STEPS}
    out = changed.get("out", shared.get("out"))
    if not isinstance(out, str | Path) or not str(out).strip():
        raise document.fault("a study needs out, the folder that its steps write to", "out")
    if "json" in changed:
        raise FieldError(f"{document.path} is a study of several commands; leave out --json")
    steps = document.value[STEPS]
    if not isinstance(steps, list) or not steps:
        raise document.fault("steps are a list of commands, each with its options", STEPS)
    calls, unused = [], {*shared, *changed} - {"out"}
    for place, step in enumerate(steps):
        own = document.at(STEPS, place)
        if not isinstance(step, dict) or COMMAND not in step:
            raise own.fault("a step is a command with its options, as in {command: score, ...}")
        refuse_commanded(own)
        known = {*parameters(command_of(context, own)[0])} - {"out", *step}
        unused -= known
        general = {n: v for n, v in shared.items() if n in known}
        said = {n: _placed(v, str(out)) for n, v in {**general, **step}.items()}
        over = {n: v for n, v in changed.items() if n in known}
        trusted = bool(changed.get("trust_remote_code"))
        calls.append((Call.of(context, own.of(said), trusted=trusted), over))
    if unused:
        name = min(unused)
        typed = f"--{name.replace('_', '-')}" if name in changed else name
        raise document.fault(f"no step uses {typed}; leave it out", name)
    for call, over in calls:
        call.check(context, over)
    for number, (call, over) in enumerate(calls, start=1):
        note(f"step {number} of {len(calls)}: layerif {call.name}")
        if status := call.run(context, over):
            return status
    return 0


def _placed(value: Any, out: str) -> Any:
    """A value with the study's folder in the place of `{out}`."""
    if isinstance(value, list):
        return [_placed(each, out) for each in value]
    return value.replace(OUT, out) if isinstance(value, str) else value
