"""Recipes of single commands: each command writes the one that `layerif run` replays.

Such a recipe is the command's name and its options, all of them, so that it says the same when a
default changes. What the options are is read off the command itself and stands nowhere else.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from layerif.errors import InputError

if TYPE_CHECKING:
    from layerif.studies.document import Document

COMMAND = "command"
# Said anew each time, and not part of the work.
NOT_WORK = ("overwrite", "json")


def write_recipe(context: typer.Context, out: Path) -> None:
    """Write the recipe of the command that `context` runs, into `out` or beside the file `out`."""
    import yaml

    from layerif.files import write_text

    words: list[str] = []
    here: Any = context
    while here.parent is not None:
        words.insert(0, here.info_name)
        here = here.parent
    options = {
        name: _plain(context.params[parameter.name])
        for name, parameter in _parameters(context.command).items()
        if name not in NOT_WORK and context.params.get(parameter.name) is not None
    }
    path = out / "recipe.yaml" if out.is_dir() else out.with_suffix(".recipe.yaml")
    text = yaml.safe_dump({COMMAND: " ".join(words), **options}, sort_keys=False)
    write_text(path, text)


def replay(context: typer.Context, document: Document, **changed: Any) -> None:
    """Run the command of a recipe that `write_recipe` wrote, or a person in its form.

    Args:
        context: of the command that replays; its root is the command line.
        document: the recipe.
        changed: options that take the place of the recipe's; None leaves the recipe's.

    Raises:
        InputError: no such command or option, or a value that it does not take; with the line.
    """
    root = context.find_root().command
    command, words = _command(root, document)
    known = _parameters(command)
    given = {name: value for name, value in document.value.items() if name != COMMAND}
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}? It" if close else "it"
            raise InputError(
                f"{document.path}, line {document.line(name)}: `layerif {' '.join(words)}` has no "
                f"option {name!r}; {hint} takes {', '.join(n for n in known if n != 'help')}"
            )
    given |= {name: value for name, value in changed.items() if value is not None and name in known}
    arguments, positional = [], []
    for name, value in given.items():
        if value is None:
            continue
        parameter = known[name]
        if parameter.param_type_name == "argument":
            positional.append(str(value))
        elif isinstance(value, bool):
            flags = parameter.opts if value else parameter.secondary_opts
            arguments += flags[:1]
        elif getattr(parameter, "multiple", False):
            each = value if isinstance(value, list) else [value]
            arguments += [f"{parameter.opts[0]}={item}" for item in each]
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            arguments.append(f"{parameter.opts[0]}={text}")
    try:
        root.main(
            [*words, *arguments, "--", *positional], prog_name="layerif", standalone_mode=False
        )
    except typer.BadParameter as error:
        parameter = error.param
        name = next((n for n, p in known.items() if parameter and p.name == parameter.name), None)
        where = "" if name is None else f", line {document.line(name)}: {name}"
        raise InputError(f"{document.path}{where}: {error.message or 'is missing'}") from None


def _command(root: Any, document: Document) -> tuple[Any, list[str]]:
    """The command that a recipe names, and the words that call it."""
    found = root
    words = str(document.value[COMMAND]).split()
    for word in words:
        commands = getattr(found, "commands", {})
        if word not in commands:
            raise InputError(
                f"{document.path}, line {document.line(COMMAND)}: there is no command "
                f"`layerif {' '.join(words)}`; known here: {', '.join(commands) or 'none'}"
            )
        found = commands[word]
    if hasattr(found, "commands") or words == ["run"]:
        raise InputError(
            f"{document.path}, line {document.line(COMMAND)}: `layerif {' '.join(words)}` is no "
            "command that a recipe can replay"
        )
    return found, words


def _parameters(command: Any) -> dict[str, Any]:
    """A command's parameters by the names they have in recipes: those of the command line."""
    return {
        (parameter.opts[0].lstrip("-").replace("-", "_")): parameter for parameter in command.params
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list) else str(value)
