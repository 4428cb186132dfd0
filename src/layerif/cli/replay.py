"""Recipes of single commands: each command writes the one that `layerif run` replays.

Such a recipe is the command's name and its options, all that have an effect, so that it says the
same when a default changes. What the options are is read off the command itself and is declared
nowhere else. What may destroy or run code is said on the command line alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from layerif.cli.command import given, parameters, prepare, rules_of, values
from layerif.cli.output import emit
from layerif.core.options import GIVES_WAY, idle
from layerif.core.processes import is_first
from layerif.errors import FieldError

if TYPE_CHECKING:
    from layerif.workflows.document import Document

COMMAND = "command"
# A recipe may be written by anybody: what replaces files and what runs a model's code is for those
# who run it to say.
COMMAND_LINE_ONLY = {"overwrite": "--overwrite", "trust_remote_code": "--trust-remote-code"}
# What a command line is refused with before its command runs.
UsageError: Any = typer.BadParameter.__base__
# Said each time, and not part of the work.
NOT_WORK = ("json", *COMMAND_LINE_ONLY)


def finish(
    context: typer.Context, out: Path | None, table: Any, value: Any, *lines: str, as_json: bool
) -> None:
    """Leave the recipe of a command with its result, if it wrote one, and print what came out."""
    if out is not None:
        write_recipe(context, out)
        lines = (*lines, f"wrote {out}")
    emit(table, value, *lines, as_json=as_json)


def write_recipe(context: typer.Context, out: Path) -> None:
    """Write the recipe of the command that `context` runs, into `out` or beside the file `out`.

    A file there that is no such recipe stays as it is; so does one that a person has edited. Of
    several processes the first one writes it.
    """
    import yaml

    from layerif.core.files import keep_recipe, recipe_path

    if not is_first():
        return
    left_out = {*NOT_WORK, *idle(rules_of(context), values(context)), *_giving_way(context)}
    options = {
        name: _plain(context.params[parameter.name])
        for name, parameter in parameters(context.command).items()
        if name not in left_out and context.params.get(parameter.name) not in (None, (), [])
    }
    command = context.command_path.removeprefix(context.find_root().command_path).strip()
    text = yaml.safe_dump({COMMAND: command, **options}, sort_keys=False)
    keep_recipe(recipe_path(out, folder=out.is_dir()), text)


def _giving_way(context: typer.Context) -> set[str]:
    """The numbers of rows that were not given, and give way to what there is."""
    said = given(context)
    return {
        name
        for kind in getattr(context.command.callback, "option_classes", ())
        for name, field in kind.model_fields.items()
        if GIVES_WAY in field.metadata
        and name not in said
        and context.params[name] == field.default
    }


def refuse_commanded(document: Document) -> None:
    """Refuse what only the command line may say.

    Raises:
        FieldError: the recipe says it; with the line, and the flag of `layerif run`.
    """
    for name, flag in COMMAND_LINE_ONLY.items():
        if document.value.get(name):
            raise document.fault(
                f"{name} is not taken from a recipe, which anybody may have written; take it out, "
                f"and pass {flag} to `layerif run` where you want it",
                name,
            )


def replay(context: typer.Context, document: Document, changed: Mapping[str, Any]) -> int:
    """Run the command of a recipe that `write_recipe` wrote, or a person in its form.

    Args:
        context: of the command that replays; its root is the command line.
        document: the recipe.
        changed: options that were given to `layerif run` and take the place of the recipe's.

    Returns:
        The exit status of the command.

    Raises:
        FieldError: no such command or option, or a value that it does not take; with the line.
    """
    call = Call.of(context, document, trusted=bool(changed.get("trust_remote_code")))
    for name in changed:
        if name not in call.known:
            raise FieldError(
                f"{document.path} is a recipe of `layerif {call.name}`, which has no option "
                f"--{name.replace('_', '-')}; leave it out"
            )
    return call.run(context, changed)


@dataclass(frozen=True)
class Call:
    """A command, and the options that a recipe gives it.

    Attributes:
        document: the recipe, or the part of one.
        name: of the command, in words.
        command: itself.
        known: its parameters, by their names in recipes.
        written: the options, by the same names.
    """

    document: Document
    name: str
    command: Any
    known: Mapping[str, Any]
    written: Mapping[str, Any]

    @classmethod
    def of(cls, context: typer.Context, document: Document, *, trusted: bool) -> Call:
        """What a recipe calls.

        Args:
            context: of the command that replays; its root is the command line.
            document: the recipe.
            trusted: whether code beside what it names may run.

        Raises:
            FieldError: no such command or option, or a value of a form that it does not take.
        """
        command, words = command_of(context, document)
        known = parameters(command)
        left_out = (COMMAND, *COMMAND_LINE_ONLY)
        written = {n: v for n, v in document.value.items() if n not in left_out}
        if words[0] == "metric":
            written.pop("name", None)
        _check_written(document, written, known, words, trusted=trusted)
        return cls(document, " ".join(words), command, known, written)

    def check(self, context: typer.Context, changed: Mapping[str, Any]) -> None:
        """Refuse what is missing, malformed or without effect, and run nothing.

        Raises:
            FieldError: something is; with the line.
        """
        words = _arguments({**self.written, **changed}, self.known)
        with self._faults():
            prepare(self.command.make_context(self.name, words, parent=context.find_root()))

    def run(self, context: typer.Context, changed: Mapping[str, Any]) -> int:
        """Run it, with other options in the place of its own; the exit status.

        Raises:
            FieldError: a value that it does not take; with the line.
        """
        root: Any = context.find_root().command
        with self._faults():
            status = root.main(
                [*self.name.split(), *_arguments({**self.written, **changed}, self.known)],
                prog_name="layerif",
                standalone_mode=False,
            )
        return status if isinstance(status, int) else 0

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """What a command line would be refused with inside, as an error of the recipe."""
        from layerif.core.options import IdleOptionError

        def fault(name: str, why: object) -> FieldError:
            if name in self.written:
                return self.document.fault(f"{name}: {why}", name)
            return self.document.fault(f"`layerif {self.name}`: {why}")

        try:
            yield
        except UsageError as error:
            asked = getattr(error, "param", None)
            name = next((n for n, p in self.known.items() if asked and p.name == asked.name), "")
            raise fault(name, error.message or f"{name} is missing") from None
        except IdleOptionError as error:
            raise fault(error.option, error) from None


def _check_written(
    document: Document,
    written: dict[Any, Any],
    known: dict[str, Any],
    words: list[str],
    *,
    trusted: bool,
) -> None:
    """Refuse what a command does not take, before it is called."""
    for name, value in written.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}? It" if close else "it"
            raise document.fault(
                f"`layerif {' '.join(words)}` has no option {name!r}; {hint} takes "
                f"{', '.join(n for n in known if n not in NOT_WORK)}",
                name,
            )
        if isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(each, dict | list) for each in value)
        ):
            raise document.fault(f"{name} takes a word, a number or a list of them", name)
    harness = written.get("harness") or ""
    listed = harness if isinstance(harness, list) else str(harness).split(",")
    files = [name for each in listed if (name := str(each).strip()).endswith((".yaml", ".yml"))]
    if files and not trusted:
        raise document.fault(
            f"{files[0]} is a task file of lm-evaluation-harness, which may run Python code that "
            "lies beside it; read it, and pass --trust-remote-code to `layerif run` to run it",
            "harness",
        )


def _arguments(values: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Options by their names in recipes as words of a command line."""
    arguments, positional = [], []
    for name, value in values.items():
        parameter, listed = known[name], value if isinstance(value, list) else [value]
        if value is None:
            continue
        if parameter.param_type_name == "argument":
            positional.append(str(value))
        elif isinstance(value, bool):
            arguments += (parameter.opts if value else parameter.secondary_opts)[:1]
        elif getattr(parameter, "multiple", False):
            arguments += [f"{parameter.opts[0]}={each}" for each in listed]
        else:
            arguments.append(f"{parameter.opts[0]}={','.join(map(str, listed))}")
    return [*arguments, "--", *positional]


def command_of(context: Any, document: Document) -> tuple[Any, list[str]]:
    """The command that a recipe names, and the words that call it."""
    found: Any = context.find_root().command
    words = str(document.value[COMMAND]).split()
    if words == ["metric"] and "name" in document.value:  # as layerif 0.1 wrote it
        words.append(str(document.value["name"]))
    called = f"`layerif {' '.join(words)}`"
    for word in words:
        names = found.list_commands(context) if hasattr(found, "list_commands") else []
        if word not in names:
            raise document.fault(
                f"there is no command {called}; known here: {', '.join(names) or 'none'}", COMMAND
            )
        found = found.get_command(context, word)
    if hasattr(found, "list_commands") or words in (["run"], ["clean"]):
        raise document.fault(f"{called} is not a command that a recipe can replay", COMMAND)
    return found, words


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):  # of an option that is given several times
        return list(value)
    return value if isinstance(value, str | int | float | bool | list) else str(value)
