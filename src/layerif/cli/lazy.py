"""Commands that are imported when they are called, so that the list of them appears at once."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from layerif.cli.command import Command

HERE = "layerif.cli"


class LazyGroup(TyperGroup):
    """Commands by name, each in a module of its own: a function of that name, or a group `app`.

    A listing shows the first words of their docstrings, which are read off the source.
    """

    modules: tuple[str, ...] = ()
    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.modules:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=_docstring(cmd_name))
        module = import_module(f"{HERE}.{cmd_name}")
        if hasattr(module, "app"):
            found: Any = typer.main.get_command(module.app)
        else:
            single = group()
            single.command(cmd_name, cls=Command)(getattr(module, cmd_name))
            found = typer.main.get_command(single)
        found.name = cmd_name
        return found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def group(**options: Any) -> typer.Typer:
    """Commands of one kind."""
    return typer.Typer(add_completion=False, rich_markup_mode="markdown", **options)


def _docstring(name: str) -> str:
    """Of the command of a name, or of its module where that is a group."""
    spec = find_spec(f"{HERE}.{name}")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
    return ast.get_docstring(tree) or ""
