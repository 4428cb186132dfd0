"""A commented recipe to start from, written from the options themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from layerif.core.options import GIVES_WAY, idle
from layerif.core.registry import Registry
from layerif.workflows.recipe import SHARED, Recipe

# What has no default, to begin with; stages that are not among them are commented out.
EXAMPLE: dict[str, Any] = {
    "model": "smollm2",
    "out": "runs/mine",
    "score": {"task": "agreement"},
    "sparsity": {"target": 0.5},
    "experts": {"total": 150},
    "evaluate": {"tasks": ["agreement", "python-docs"]},
}
OTHERS: dict[str, Any] = {
    "ranks": {"total": 240},
    "bits": {"bits": 3},
    "depth": {"drop": 4},
    "finetune": {"plans": ["lora"], "seeds": [0, 1, 2], "train_samples": 1000},
}
HEAD = """\
# A recipe for `layerif run`: everything that a run depends on, with the defaults written out.
# An option behind a # is optional, or has an effect beside another value alone.
"""
WIDTH = 100


def template() -> str:
    """YAML of all options at their defaults, each with its help."""
    example = Recipe.model_validate(EXAMPLE)
    lines = [HEAD]
    for name, field in Recipe.model_fields.items():
        kind = Recipe.stages().get(name)
        if kind is None:
            lines += _option(name, field, EXAMPLE.get(name, field.default), "")
            continue
        given = EXAMPLE.get(name) or OTHERS.get(name) or {}
        without = idle(kind.rules, example.beside(name)) if getattr(example, name) else set()
        own = [f"{name}:  # {_words(kind)}"]
        first = sorted(kind.model_fields.items(), key=lambda each: each[0] not in given)
        for option, info in first:
            if option not in SHARED:
                default = info.get_default(call_default_factory=True)
                left_out = option in without or GIVES_WAY in info.metadata
                value = given.get(option, default)
                own += _option(option, info, value, "  ", left_out=left_out and option not in given)
        commented = name in OTHERS
        lines += ["", *(f"# {line}".rstrip() if commented else line for line in own)]
    return "\n".join(lines) + "\n"


def _option(
    name: str, field: FieldInfo, value: Any, indent: str, *, left_out: bool = False
) -> Iterator[str]:
    """The lines of one option: its help, behind it where there is room."""
    helped = " ".join((field.description or "").split())
    registries = [each for each in field.metadata if isinstance(each, Registry)]
    choices = [each.names() for each in registries]
    if get_origin(field.annotation) is Literal:
        choices.append(list(get_args(field.annotation)))
    helped = " ".join([helped, *(f"One of {', '.join(each)}." for each in choices)])
    mark = "# " if left_out or value is None else ""
    line = f"{indent}{mark}{name}:{'' if value is None else ' ' + _plain(value)}"
    if len(line) + len(helped) + 4 <= WIDTH:
        yield f"{line}  # {helped}"
        return
    yield from textwrap.wrap(
        helped,
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_on_hyphens=False,
    )
    yield line


def _plain(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, Mapping):
        value = dict(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _words(kind: type[BaseModel]) -> str:
    """What a stage is, in a few words."""
    words = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
    return words[:1].lower() + words[1:]
