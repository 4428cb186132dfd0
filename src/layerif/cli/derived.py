"""Flags from options: what a command takes as one object, the command line takes one by one.

A command declares a parameter of an `Options` class; typer sees a flag for each of its fields, with
the field's docstring as help, its default, and the class's title as panel. Called, the command gets
the options as one object, checked.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from layerif.cli.command import given
from layerif.core.options import Options, Rule, Shown, words
from layerif.core.registry import Registry
from layerif.errors import InputError


def expanded(
    command: Callable[..., None], rules: tuple[Rule, ...] = (), **classes: type[Options]
) -> Callable[..., None]:
    """The command with a flag in place of every field of its options.

    Two classes may have a field in common: there is one flag then, and both get its value.

    Args:
        command: with parameters of option classes.
        rules: which of its options have an effect only beside others, beside those of the classes.
        classes: of parameters, in place of the annotated ones.
    """
    signature = inspect.signature(command, eval_str=True)
    annotated = {name: p.annotation for name, p in signature.parameters.items()} | classes
    groups = {
        name: kind
        for name, kind in annotated.items()
        if isinstance(kind, type) and issubclass(kind, Options)
    }
    flags: dict[str, inspect.Parameter] = {}
    for name, parameter in signature.parameters.items():
        if name not in groups:
            flags[name] = parameter
            continue
        for field, info in groups[name].model_fields.items():
            flags.setdefault(field, _flag(field, info, _title(groups[name], field)))

    @functools.wraps(command)
    def called(**values: Any) -> None:
        own = {name: values[name] for name in signature.parameters if name not in groups}
        said = given(values["context"]) if "context" in values else set(values)
        for name, kind in groups.items():
            own[name] = kind(
                **{
                    field: value
                    for field, info in kind.model_fields.items()
                    for value in (_value(info, values[field], field),)
                    if flag_of(field, info)[2:].replace("-", "_") in said
                    or not _is_default(value, info)
                }
            )
        command(**own)

    ordered = sorted(flags.values(), key=lambda p: p.default is not inspect.Parameter.empty)
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in ordered]
    )
    called.__annotations__ = {name: p.annotation for name, p in flags.items()}
    called.option_classes = tuple(groups.values())  # type: ignore[attr-defined]
    of_classes = (rule for kind in groups.values() for rule in kind.rules)
    called.rules = (*of_classes, *rules)  # type: ignore[attr-defined]
    return called


def with_rules(*rules: Rule) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`expanded`, for a command that has rules of its own."""
    return functools.partial(expanded, rules=rules)


def _title(kind: type[Options], field: str) -> str | None:
    """The title of the class that declares a field."""
    for each in kind.__mro__:
        if issubclass(each, Options) and field in vars(each).get("__annotations__", ()):
            return each.title
    return kind.title


def _is_default(value: Any, info: FieldInfo) -> bool:
    default = info.get_default(call_default_factory=True)
    return bool(value == (list(default) if isinstance(default, tuple) else default))


def flag_of(name: str, info: FieldInfo) -> str:
    """The flag of a field."""
    return _shown(info).flag or f"--{name.replace('_', '-')}"


def _flag(name: str, info: FieldInfo, title: str | None) -> inspect.Parameter:
    shown = _shown(info)
    kind, default = _typed(info.annotation), info.get_default(call_default_factory=True)
    flag = flag_of(name, info)
    if kind is bool and default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    if isinstance(default, tuple):
        default = ",".join(map(str, default)) or None
    elif isinstance(default, dict):
        default = None
    if info.is_required():
        default = inspect.Parameter.empty
    hidden = default in (None, inspect.Parameter.empty)
    registries = [each for each in info.metadata if isinstance(each, Registry)]
    names = [f"One of {', '.join(each.names())}." for each in registries]
    option = typer.Option(
        flag,
        help=" ".join([*(info.description or "").split(), *names]),
        show_default=shown.default or not hidden,
        metavar=shown.metavar,
        rich_help_panel=title,
    )
    annotation: Any = Annotated[kind | None if default is None else kind, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _shown(info: FieldInfo) -> Shown:
    return next((each for each in info.metadata if isinstance(each, Shown)), Shown())


def _typed(annotation: Any) -> Any:
    """What typer reads: several values are one word with commas, named values are repeated."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (each for each in get_args(annotation) if each is not NoneType)
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is dict:
        return list[str]
    if get_origin(annotation) is tuple:
        return str
    if annotation is Any:  # a name, or in Python an object
        return str
    if get_origin(annotation) is Literal or annotation in (str, int, float, bool, Path):
        return annotation
    raise TypeError(f"no flag is made of {annotation}")


def _value(info: FieldInfo, value: Any, name: str) -> Any:
    """What was typed, as the field takes it.

    Raises:
        InputError: it does not: a word is no number, or a name has no value.
    """
    annotation = info.annotation
    if get_origin(annotation) is dict:
        return dict(_named_value(text, flag_of(name, info)) for text in value or [])
    if get_origin(annotation) is tuple and isinstance(value, str | None):
        (each, *_) = get_args(annotation)
        read = _number if each == int | float else _typed(each)
        try:
            return [read(word) for word in words(value or "")]
        except ValueError:
            what, such = ("whole numbers", "0,1,2") if read is int else ("numbers", "0.01,1")
            raise InputError(
                f"{flag_of(name, info)} takes {what} with commas between them, such as {such}, and "
                f"not {value!r}"
            ) from None
    return value


def _number(word: str) -> int | float:
    """A number; whole where it is written so."""
    return int(word) if word.lstrip("+-").isdigit() else float(word)


def _named_value(text: str, flag: str) -> tuple[str, Any]:
    """Name and value: JSON's true, false, null and numbers where it is one, and else the text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(
            f"{flag} takes NAME=VALUE, such as enable_thinking=false, and not {text!r}"
        )
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
