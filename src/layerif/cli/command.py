"""What all commands do alike, around their own work.

A preset is put under what was given; an option that has no effect is refused; an error names
options as they are typed; and an interruption says what is kept and which command goes on.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from layerif.errors import FieldError, LayerifError


class Terminated(KeyboardInterrupt):
    """The system asks this process to end: handled as an interruption from the keyboard."""


class Command(TyperCommand):
    """A command of layerif."""

    def invoke(self, ctx: Any) -> Any:
        try:
            prepare(ctx)
            return super().invoke(ctx)
        except LayerifError as error:
            if not isinstance(error, FieldError):
                error.args = (as_typed(str(error), self.params),)
            raise
        except KeyboardInterrupt as stop:
            from layerif.core.progress import note

            note(f"interrupted: {_kept(ctx.params)}")
            number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
            raise typer.Exit(128 + number) from stop


def parameters(command: Any) -> dict[str, Any]:
    """A command's parameters by the names they have in recipes: those of the command line."""
    return {each.opts[0].lstrip("-").replace("-", "_"): each for each in command.params}


def values(context: Any) -> dict[str, Any]:
    """What each option of a command is, given or not, by its name in recipes."""
    return {name: context.params.get(p.name) for name, p in parameters(context.command).items()}


def given(context: Any) -> set[str]:
    """The options of a command that were given, by their names in recipes."""
    return {
        name
        for name, parameter in parameters(context.command).items()
        if getattr(context.get_parameter_source(parameter.name), "name", "DEFAULT") != "DEFAULT"
    }


def rules_of(context: Any) -> Sequence[Any]:
    """When the options of a command have an effect."""
    return getattr(context.command.callback, "rules", ())


def prepare(context: Any) -> None:
    """Put a preset under what was given, and refuse an option that has no effect."""
    put_preset(context)
    _refuse_idle(context)


def put_preset(context: Any) -> None:
    """Put the options of a preset under those that were given; the recipe then says them too."""
    preset = context.params.get("preset")
    if preset is not None:
        classes = getattr(context.command.callback, "option_classes", ())
        chosen = next(each for each in classes if preset in each.presets)
        context.params.update(chosen.preset_options(preset, given(context)))


def _refuse_idle(context: Any) -> None:
    from layerif.core.options import refuse_idle

    known = parameters(context.command)

    def flag(name: str) -> str:
        parameter = known[name]
        return parameter.opts[0] if parameter.param_type_name == "option" else name.upper()

    refuse_idle(rules_of(context), given(context), values(context), flag)


def as_typed(message: str, options: Sequence[Any]) -> str:
    """A message of the library with its arguments as options: `rank=8` becomes `--rank 8`.

    A single word such as `rank`, plain English too, is taken for an argument only in backticks or
    where a value follows.
    """
    options = [each for each in options if each.param_type_name == "option"]
    typed = {each.opts[0].lstrip("-").replace("-", "_"): each for each in options}
    flags = {each.name: each for each in options} | typed

    def assigned(found: re.Match[str]) -> str:
        option, value = flags.get(found[1]), found[2].strip("'\"")
        if option is None:
            return found[0]
        if option.is_flag:
            opts = option.opts if value == "True" else option.secondary_opts
            return str(opts[0]) if opts else found[0]
        return f"{option.opts[0]} {value}"

    def named(found: re.Match[str]) -> str:
        option = flags.get(found[0].strip("`"))
        return found[0] if option is None else str(option.opts[0])

    message = re.sub(
        r"(?<![\w./\\-])(\w+)=('[^']*'|\"[^\"]*\"|True|False|-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf)(?![\w/]|\.\w)",
        assigned,
        message,
    )
    words = r"`[a-z_]+`|(?<![\w./\\'\"-])[a-z]+(?:_[a-z]+)+(?![\w/\\'\"=-]|\.\w)"
    return re.sub(words, named, message)


def _kept(options: Mapping[str, Any]) -> str:
    """What an interrupted command leaves, and how to go on."""
    from layerif.core.checkpoint import steps_folder

    again = shlex.join(["layerif", *sys.argv[1:]])
    out = options.get("out")
    if out is not None and steps_folder(Path(out)).is_dir():
        kept = f"finished steps are kept in {steps_folder(Path(out))}"
    elif out is not None and Path(out).exists():
        kept = f"what is finished is kept in {out}"
    elif options.get("no_cache") is False:
        kept = "likelihoods of finished batches are kept in the cache"
    else:
        return f"nothing was written; to begin again: {again}"
    return f"{kept}; to go on from there: {again}"


@contextmanager
def ended_politely() -> Iterator[None]:
    """The system's request to end (SIGTERM) is an interruption inside, and as before afterwards.

    Not in one of several processes: it may wait for others in code that Python cannot interrupt.
    """
    from layerif.core import processes

    if processes.count() > 1:
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Terminated

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
