"""Options, each declared once, in a class beside the function that it configures.

A field's docstring is its help. From the fields follow the flags of the command line, the keys of
recipes, what presets may set, what fingerprints hold, and the keyword arguments of functions.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self, TypeVar

from pydantic import ConfigDict, ValidationError, create_model

from layerif.core.choices import instead_of
from layerif.core.files import quoted
from layerif.core.record import Record, expected
from layerif.errors import InputError

Values = Mapping[str, Any]
R = TypeVar("R")
Part = TypeVar("Part", bound="Options")


@dataclass(frozen=True)
class Rule:
    """When some options have an effect: given where they have none, one is refused.

    Attributes:
        options: their names, with blanks between them.
        active: whether they have one, from the values of all options of a command or stage.
        when: the same in words, after "applies only"; other options are `{names}` in braces.
    """

    options: str
    active: Callable[[Values], bool]
    when: str


@dataclass(frozen=True)
class Shown:
    """How the command line writes an option, where its name, type and default do not say it.

    Attributes:
        default: words for the default.
        flag: in place of the name with dashes.
        metavar: of the value.
    """

    default: str | None = None
    flag: str | None = None
    metavar: str | None = None


class Mark(Enum):
    """What else is true of an option, beside its type and bounds."""

    RESULTS_UNCHANGED = "it changes memory and speed alone, and so is in no fingerprint"
    GIVES_WAY = "a default of more than there is gives way to what there is"
    ADDED = "earlier results have its default, so it is in a fingerprint where it differs from that"


RESULTS_UNCHANGED, GIVES_WAY, ADDED = Mark.RESULTS_UNCHANGED, Mark.GIVES_WAY, Mark.ADDED


class Options(Record):
    """What a function is asked for, checked field by field.

    Attributes:
        title: of the group of flags in a command's help; none for the common group.
        rules: which options have an effect only beside others.
        presets: options that belong together, by one word; what is given beside it wins.
        renamed: names that options had before, and what they are called now.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    title: ClassVar[str | None] = None
    rules: ClassVar[tuple[Rule, ...]] = ()
    presets: ClassVar[Mapping[str, Values]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **given: Any) -> None:
        """Check what is given; the rest is by default.

        Raises:
            InputError: an option that does not exist, or a value that is out of its range.
        """
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise InputError(_first_fault(error, type(self))) from None

    # Inside another record the fields are checked by that record, which knows the line.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def but(self, **changes: Any) -> Self:
        """The same options with some changed, checked again."""
        return type(self)(**{**self.given(), **changes}) if changes else self

    def given(self) -> dict[str, Any]:
        """The options by name that are not left to their defaults."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def values(self) -> dict[str, Any]:
        """All options by name."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def part(self, kind: type[Part]) -> Part:
        """Those of the options that another class has, whatever its own defaults are."""
        own = self.values()
        return kind(
            **{
                name: own[name]
                for name, field in kind.model_fields.items()
                if name in self.model_fields_set
                or (name in own and (field.is_required() or own[name] != field.default))
            }
        )

    def left_out(self) -> set[str]:
        """The options that give way to what there is, as they were not given."""
        return {
            name
            for name, field in type(self).model_fields.items()
            if GIVES_WAY in field.metadata and name not in self.model_fields_set
        }

    def recorded(self) -> dict[str, Any]:
        """The options that results depend on, for a fingerprint."""
        recorded = {}
        for name, value in self.values().items():
            field = type(self).model_fields[name]
            same = ADDED in field.metadata and value == field.default
            if not same and RESULTS_UNCHANGED not in field.metadata:
                recorded[name] = value
        return recorded


def _first_fault(error: ValidationError, kind: type[Options]) -> str:
    fault = error.errors(include_url=False)[0]
    name = str(fault["loc"][0]) if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        if name in kind.renamed:
            return f"there is no option {name}; it is called {kind.renamed[name]} now"
        return f"there is no option {name}; {instead_of(name, kind.model_fields)}"
    if fault["type"] == "missing":
        return f"{name} is missing"
    if not name or fault["type"] == "value_error":
        return expected(fault)
    return f"{name}={quoted(fault['input'], 60)}: {expected(fault)}"


def refuse_idle(
    rules: Iterable[Rule], given: Collection[str], values: Values, flag: Callable[[str], str] = str
) -> None:
    """Refuse options that were given, by whatever value, and have no effect.

    Args:
        rules: of the command or stage.
        given: names of the options that were given.
        values: all options.
        flag: how the reader writes an option.

    Raises:
        IdleOptionError: one has no effect; says when it would.
    """
    for rule in rules:
        for option in rule.options.split():
            if option in given and not rule.active(values):
                when = re.sub(r"{(\w+)}", lambda named: flag(named[1]), rule.when)
                raise IdleOptionError(
                    option,
                    f"{flag(option)} has no effect here, and applies only {when}; leave it out",
                )


def idle(rules: Iterable[Rule], values: Values) -> set[str]:
    """The options that have no effect beside the others, given or not."""
    return {name for r in rules if not r.active(values) for name in r.options.split()}


def words(value: str | Iterable[str]) -> list[str]:
    """The words of an option that takes several: a list, or one text with commas between them."""
    parts = value.split(",") if isinstance(value, str) else value
    return [part.strip() for part in parts if part.strip()]


class IdleOptionError(InputError):
    """An option was given that has no effect beside the others.

    Attributes:
        option: its name.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


def options_class(name: str, defaults: Values) -> type[Options]:
    """A class of options from their defaults, whose types are theirs."""
    fields: Any = {option: (type(value), value) for option, value in defaults.items()}
    return create_model(f"{name}_options", __base__=Options, **fields)


def takes(
    kind: type[Options], narrowed: Callable[[Values], type[Options]] | None = None
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Let a function with a parameter `options` of that kind take each option by keyword too.

    `score(..., rank=4)` is `score(..., options=ScoreOptions(rank=4))`. Given both, the keyword
    wins. The signature that `help` shows has all of them.

    Args:
        kind: the class of options.
        narrowed: which subclass of it, from the function's other arguments by keyword; None for
            the class itself.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        own = inspect.signature(function)
        closed = all(p.kind != inspect.Parameter.VAR_KEYWORD for p in own.parameters.values())

        @functools.wraps(function)
        def called(*args: Any, **arguments: Any) -> R:
            options = arguments.pop("options", None)
            taken = kind if narrowed is None else narrowed(arguments)
            taken = taken if options is None else type(options)
            known = {*taken.model_fields, *taken.renamed}
            others = [name for name in arguments if name not in own.parameters]
            changes = {n: arguments.pop(n) for n in others if n in known or closed}
            chosen = taken(**changes) if options is None else options.but(**changes)
            return function(*args, options=chosen, **arguments)

        called.__signature__ = _with_keywords(own, kind)  # type: ignore[attr-defined]
        return called

    return decorate


def _with_keywords(own: inspect.Signature, kind: type[Options]) -> inspect.Signature:
    parameters, keyword = dict(own.parameters), inspect.Parameter.KEYWORD_ONLY
    optional = parameters.pop("options").replace(default=None, kind=keyword)
    by_keyword = [
        inspect.Parameter(
            name,
            keyword,
            default=inspect.Parameter.empty if field.is_required() else field.get_default(),
            annotation=field.annotation,
        )
        for name, field in kind.model_fields.items()
        if name not in parameters
    ]
    return own.replace(
        parameters=sorted([*parameters.values(), optional, *by_keyword], key=lambda p: p.kind)
    )
