"""A YAML file whose faults can be pointed at by their line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from layerif.errors import InputError


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

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a file.

        Raises:
            InputError: no such file, not YAML, or a key that stands twice; with the line.
        """
        try:
            node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
            return cls(path, {} if node is None else _plain(node), node)
        except FileNotFoundError:
            raise InputError(f"no recipe at {path}: the file does not exist") from None
        except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
            raise InputError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None

    def line(self, *path: int | str) -> int:
        """The line of the deepest node on a path of keys and indices, from 1."""
        node, line = self._node, 1
        for part in path:
            if isinstance(node, yaml.MappingNode):
                found = [(key, child) for key, child in node.value if key.value == part]
                if not found:
                    break
                line, node = found[0][0].start_mark.line + 1, found[0][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                node = node.value[part]
                line = node.start_mark.line + 1
        return line


def _plain(node: yaml.Node) -> Any:
    """The value of a YAML node; a key that stands twice is refused, as one of the two is lost."""
    if isinstance(node, yaml.MappingNode):
        value: dict[Any, Any] = {}
        for key, child in node.value:
            name = key.value
            if name in value:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} gives {name!r} again")
            value[name] = _plain(child)
        return value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child) for child in node.value]
    return yaml.SafeLoader("").construct_object(node, deep=True)
