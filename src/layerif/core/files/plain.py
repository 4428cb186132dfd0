"""JSON and YAML of others as plain values: what is ambiguous or endless in it is refused by line.

Refused are a key given twice, of which one would be lost; numbers that are not finite or of a
hundred digits; halves of surrogate pairs, which no tokenizer takes; and nesting that is too deep to
be walked, in YAML by aliases too.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerif.core.files.reading import MOST_JSON, brief, quoted, read_text
from layerif.errors import InputError

if TYPE_CHECKING:
    import yaml

MOST_DEEP = 64
MOST_DIGITS = 100
# A recipe has some kilobytes; PyYAML reads 100 a second.
MOST_YAML = 256 << 10
# Nodes of a YAML file with its aliases written out.
MOST_NODES = 10_000

_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_BRACKETS = re.compile(rf"{_STRING}|[][{{}}]", re.S)
_TOKENS = re.compile(rf'({_STRING})(\s*:)?|[][{{}}]|[^][{{}}:,\s"]++', re.S)
# A surrogate pair or half of one as JSON writes it, and a half as it is read.
_PAIR_OR_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


class _Fault(ValueError):
    """JSON that Python would read and we do not."""


def read_json(path: Path, what: str, most: int = MOST_JSON) -> Any:
    """The value of a JSON file.

    Raises:
        InputError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, what, most), str(path), what)


def parse_json(text: str, where: str, what: str, first_line: int | None = 1) -> Any:
    """The value of a JSON text.

    Args:
        text: the whole of it.
        where: it comes from, for the message.
        what: was expected there, for the message.
        first_line: of the text in its file; None where lines say nothing, as in a cell.

    Raises:
        InputError: it is not JSON, or ambiguous or endless as this module says; names the line.
    """
    try:
        if _deep(text):
            raise _Fault(f"it is nested deeper than {MOST_DEEP} levels")
        value = json.loads(text, object_pairs_hook=_object, **_NUMBERS)
        if _PAIR_OR_HALF.search(text) and any(
            _HALF.search(json.loads(found[1])) for found in _TOKENS.finditer(text) if found[1]
        ):
            raise _Fault("half of a surrogate pair")
        return value
    except json.JSONDecodeError as error:
        place, reason = error.pos, f"{error.msg.removesuffix(' at')} at column {error.colno}"
    except (_Fault, RecursionError) as error:
        place, reason = _fault_in(text) or (0, str(error))
    line = "" if first_line is None else f", line {first_line + text.count(chr(10), 0, place)}"
    raise InputError(f"{where}{line}: {reason}; expected {what}")


def _deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MOST_DEEP:
        return False
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MOST_DEEP:
            return True
    return False


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _Fault(f"a number of {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise _Fault(f"{brief(digits)} is too large for a number")
    return value


def _constant(name: str) -> None:
    raise _Fault(f"{name} is not a number that JSON has")


_NUMBERS: dict[str, Any] = {
    "parse_int": _whole,
    "parse_float": _finite,
    "parse_constant": _constant,
}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _Fault("a key is given twice")
    return value


def _fault_in(text: str) -> tuple[int, str] | None:
    """Place and reason of the first fault, found token by token: the fast way cannot say where."""
    keys: list[set[str]] = []
    for found in _TOKENS.finditer(text):
        token, place = found[0], found.start()
        if token in ("[", "{"):
            keys.append(set())
            if len(keys) > MOST_DEEP:
                return place, f"it is nested deeper than {MOST_DEEP} levels"
            continue
        if token in ("]", "}"):
            keys = keys[:-1]
            continue
        try:
            name = json.loads(found[1] or token, **_NUMBERS)
        except json.JSONDecodeError:
            return None
        except _Fault as fault:
            return place, str(fault)
        if found[1] and _HALF.search(name):
            return place, f"{quoted(name)} has half of a surrogate pair"
        if found[2] and keys:
            if name in keys[-1]:
                return place, f"the key {quoted(name)} is given twice"
            keys[-1].add(name)
    return None


def read_yaml(path: Path, what: str) -> tuple[Any, yaml.Node | None]:
    """The plain value of a YAML file (an empty mapping for an empty file), and its nodes.

    Keys are texts, whatever they look like.

    Raises:
        InputError: as `read_text`; or it is not YAML, or ambiguous or endless as this module says;
            names the line.
    """
    import yaml

    text = read_text(path, what, MOST_YAML)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEEP:
                raise _at(event, f"it is nested deeper than {MOST_DEEP} levels")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return ({} if node is None else _plain(node, itertools.count(1))), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        reason = " ".join(str(error.problem or error.context).split())
    except yaml.YAMLError as error:  # a character that YAML has not
        line, reason = "", " ".join(str(error).split())
    raise InputError(f"{path}{line}: {brief(reason, 240)}; expected {what}")


def _at(node: Any, reason: str) -> Exception:
    import yaml

    return yaml.MarkedYAMLError(problem=reason, problem_mark=node.start_mark)


def _plain(node: Any, nodes: Iterator[int], depth: int = 0) -> Any:
    """The value of a YAML node, its aliases written out; `nodes` counts all there are."""
    import yaml

    if next(nodes) > MOST_NODES or depth > MOST_DEEP:
        raise _at(node, "its aliases make it endless")
    if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
        raise _at(node, f"the tag {quoted(node.tag)} is not read")
    if isinstance(node, yaml.MappingNode):
        value: dict[str, Any] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _at(key, "a key must be a text")
            if key.value in value:
                raise _at(key, f"the key {quoted(key.value)} is given twice")
            value[key.value] = _plain(child, nodes, depth + 1)
        return value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, nodes, depth + 1) for child in node.value]
    return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Any:
    import yaml

    kind = node.tag.rpartition(":")[2]
    try:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError):
        raise _at(node, f"{quoted(node.value)} is no {kind}; quotes make it a text") from None
    if isinstance(value, str) and ("\0" in value or _HALF.search(value)):
        raise _at(node, f"{quoted(value)} holds a character that no text has")
    if isinstance(value, float) and not math.isfinite(value):
        raise _at(node, f"{quoted(node.value)} is not a finite number")
    if isinstance(value, int) and len(node.value) > MOST_DIGITS:
        raise _at(node, f"a number of {len(node.value):,} digits")
    return value
