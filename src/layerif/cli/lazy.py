"""Commands that are imported when they are called, so that the list of them appears at once."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from layerif.cli.command import Command


class ListedGroup(TyperGroup):
    """Commands that are known by name and by what they are for before they are loaded."""

    _listing = False

    def __init__(
        self,
        names: Callable[[], list[str]],
        help_of: Callable[[str], str],
        load: Callable[[str], Any],
        **options: Any,
    ) -> None:
        """Say what the commands are called, what each is for, and how it is loaded."""
        usual: dict[str, Any] = {"rich_markup_mode": "markdown", "no_args_is_help": True}
        super().__init__(**usual | options)
        self._names, self._help_of, self._load = names, help_of, load

    def list_commands(self, ctx: Any) -> list[str]:
        return self._names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self._names():
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=self._help_of(cmd_name))
        found = self._load(cmd_name)
        found.name = cmd_name
        return found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def imported(module: str, name: str) -> Any:
    """The command of a name in a module: its group `app`, or a function of that name."""
    found = import_module(module)
    if not hasattr(found, "app"):
        return single(getattr(found, name), name)
    return typer.main.get_command(found.app) if isinstance(found.app, typer.Typer) else found.app


def single(function: Callable[..., None], name: str, **options: Any) -> Any:
    """A function as a command."""
    alone = group()
    alone.command(name, cls=Command, **options)(function)
    return typer.main.get_command(alone)


def group(**options: Any) -> typer.Typer:
    """Commands of one kind."""
    return typer.Typer(add_completion=False, rich_markup_mode="markdown", **options)


def docstring_of(module: str, name: str) -> str:
    """Of a function in a module that is not imported, or of the module where it has none."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
    return ast.get_docstring(tree) or ""
