"""A YAML file whose errors say the line: of a recipe, or of a single command's."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from layerif.core.files import read_yaml
from layerif.errors import FieldError, InputError


@dataclass(frozen=True)
class Document:
    """What a YAML file holds, and where.

    Attributes:
        path: the file.
        value: its plain value; an empty file holds an empty mapping.
    """

    path: Path
    value: Any
    _node: yaml.Node | None
    _line: int = 1

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a file.

        Raises:
            InputError: as `layerif.core.files.read_yaml`; with the line.
        """
        value, node = read_yaml(path, "a recipe in YAML")
        return cls(path, value, node)

    def of(self, value: Any) -> Document:
        """Another value, for that of the same place."""
        return replace(self, value=value)

    def with_option(self, said: str) -> Document:
        """The same with another value for an option.

        Args:
            said: NAME=VALUE, the value in YAML; an option of a stage is STAGE.NAME.

        Raises:
            InputError: it is not of that form, or the file holds no stage of that name.
        """
        name, equals, text = said.partition("=")
        *stages, last = name.split(".")
        if not equals or not all((*stages, last)):
            raise InputError(f"{said!r} is not NAME=VALUE, as in seed=1 or sparsity.target=0.6")
        try:
            new = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"the value of {said!r} is not YAML: {error}") from None
        value = place = deepcopy(self.value)
        for stage in stages:
            place = place.get(stage) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise InputError(f"{self.path} has no stage {'.'.join(stages)!r} to set {last} in")
        place[last] = new
        return self.of(value)

    def at(self, *path: int | str) -> Document:
        """The part of it that lies at a path of keys and indices."""
        value = self.value
        for part in path:
            value = value[part]
        return Document(self.path, value, *self._found(path))

    def fault(self, message: str, *path: int | str) -> FieldError:
        """An error about what lies at a path of keys and indices, with file and line."""
        return FieldError(f"{self.path}, line {self.line(*path)}: {message}")

    def line(self, *path: int | str) -> int:
        """The line of the deepest node on a path of keys and indices, from 1."""
        return self._found(path)[1]

    def _found(self, path: tuple[int | str, ...]) -> tuple[yaml.Node | None, int]:
        """The deepest node on a path, and its line."""
        node, line = self._node, self._line
        for part in path:
            if isinstance(node, yaml.MappingNode):
                found = [(key, child) for key, child in node.value if key.value == part]
                if not found:
                    break
                line, node = found[0][0].start_mark.line + 1, found[0][1]
            elif (
                isinstance(node, yaml.SequenceNode)
                and isinstance(part, int)
                and part < len(node.value)
            ):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:  # not as the file has it
                break
        return node, line
