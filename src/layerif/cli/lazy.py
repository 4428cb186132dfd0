"""Commands that are imported when they are called, so that the list of them appears at once."""

from __future__ import annotations

import ast
from abc import abstractmethod
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from layerif.cli.command import Command

HERE = "layerif.cli"


class ListedGroup(TyperGroup):
    """Commands that are known by name and by what they are for before they are loaded."""

    _listing = False

    @abstractmethod
    def list_commands(self, ctx: Any) -> list[str]:
        """The names."""

    @abstractmethod
    def help_of(self, name: str) -> str:
        """What a command is for."""

    @abstractmethod
    def load(self, name: str) -> Any:
        """The command of a name."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=self.help_of(cmd_name))
        found = self.load(cmd_name)
        found.name = cmd_name
        return found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


class LazyGroup(ListedGroup):
    """Commands each in a module of its name: a function of that name, or a group `app`.

    A listing shows the first words of their docstrings, which are read off the source.
    """

    modules: tuple[str, ...] = ()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.modules)

    def help_of(self, name: str) -> str:
        return docstring_of(f"{HERE}.{name}", name)

    def load(self, name: str) -> Any:
        module = import_module(f"{HERE}.{name}")
        if hasattr(module, "app"):
            return typer.main.get_command(module.app)
        single = group()
        single.command(name, cls=Command)(getattr(module, name))
        return typer.main.get_command(single)


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
