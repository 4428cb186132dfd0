"""Damage to files: of their bytes, of the values in them, and of what they name.

Every choice is drawn from one `random.Random`, so that hypothesis can shrink what it finds, and a
seed says all of a mutation.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

# What somebody writes who wants to see a reader fail: as bytes at any place of a file ...
TOKENS = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\\ud83d",
    b"\\u0000",
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"9223372036854775808",
    b"1" * 5000,
    b"[" * 1000,
    b"{" * 1000,
    b'{"a":' * 1000,
    b"[" * 200_000,
    b"&a [*a]",
    b"!!int abc",
    b"!!python/object/apply:os.system ['true']",
    b"2001-99-99",
    b"\x1b]0;x\x07",
    b"\xc2\x9b31m",
    b"../../bait",
    b"/dev/null",
    b'"',
    b"'",
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"}",
    b"]",
    b": ",
    b"# ",
    b"%",
    b"x" * 200_000,
]
# ... and as a value in the place of another.
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**40,
    0.5,
    -0.0,
    1e308,
    -1e308,
    5e-324,
    "",
    "7",
    "NaN",
    "abc",
    "../bait",
    "../../bait",
    "/dev/zero",
    "/",
    "a\0b",
    "\x1b[31m[bold]",
    "((a+)+)+$",
    "{{ 1 }}",
    "{{ 9 ** 9 ** 9 }}",
    "é\u202e😀",
    "x" * 100_000,
    [],
    {},
    [[]],
    [0],
    ["a"],
    {"a": 1},
    [0] * 10_000,
]
# Written as they are into JSON: no value of Python's becomes them.
RAW = ["1e999", "NaN", "Infinity", '"\\ud83d"', "9" * 5000, "[" * 70 + "]" * 70]
_MARK = "@raw@"

Mutation = Callable[[Random, bytes], bytes]


def mutated(draw: Random, raw: bytes, suffix: str) -> bytes:
    """The bytes of a file with one to three kinds of damage; `suffix` says what the file is."""
    structured = STRUCTURED.get(suffix)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        damage = draw.choice(BYTES)
        if structured is not None and draw.random() < 0.7:
            damage = structured
        raw = damage(draw, raw)
    return raw


def _place(draw: Random, raw: bytes) -> int:
    """A place in a file, every other time near its beginning or its end, where headers are."""
    if draw.random() < 0.5:
        return draw.randrange(len(raw) + 1)
    near = draw.randrange(min(len(raw), 512) + 1)
    return near if draw.random() < 0.7 else len(raw) - near


def _flip(draw: Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(draw.choice([1, 1, 4, 16]) if raw else 0):
        changed[min(_place(draw, raw), len(raw) - 1)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _truncate(draw: Random, raw: bytes) -> bytes:
    return raw[: _place(draw, raw)]


def _zero(draw: Random, raw: bytes) -> bytes:
    start = _place(draw, raw)
    end = min(start + draw.choice([1, 8, 64, 4096]), len(raw))
    return raw[:start] + b"\0" * (end - start) + raw[end:]


def _insert(draw: Random, raw: bytes) -> bytes:
    start = _place(draw, raw)
    return raw[:start] + draw.choice(TOKENS) + raw[start:]


def _cut(draw: Random, raw: bytes) -> bytes:
    start = _place(draw, raw)
    return raw[:start] + raw[start + draw.choice([1, 8, 64, 4096]) :]


def _repeat(draw: Random, raw: bytes) -> bytes:
    start = _place(draw, raw)
    end = start + draw.choice([1, 8, 64, 4096])
    return raw[:end] + raw[start:]


def _number(draw: Random, raw: bytes) -> bytes:
    """Another length or offset in a binary header."""
    start = _place(draw, raw)
    form, most = draw.choice([("<I", 2**32 - 1), ("<Q", 2**64 - 1)])
    value = draw.choice([0, 1, most, most // 2, most // 2 + 1, 2**20, 2**30])
    new = struct.pack(form, value)
    return raw[:start] + new + raw[start + len(new) :]


BYTES: list[Mutation] = [_flip, _truncate, _zero, _insert, _cut, _repeat, _number]


def changed_value(draw: Random, value: Any) -> Any:
    """A plain value with one part of it replaced, dropped, doubled, added or nested."""
    places = list(_places(value))
    holder, key = draw.choice(places) if places else (None, None)
    if holder is None or draw.random() < 0.03:
        return draw.choice(VALUES)
    how = draw.randrange(6)
    if how == 0:
        del holder[key]
    elif how == 1:
        holder[key] = f"{_MARK}{draw.choice(RAW)}"
    elif how == 2 and isinstance(holder, dict):
        holder[draw.choice(["", "a", "..", "x" * 9999, "\x1b[31m", f"{key}x"])] = holder[key]
    elif how == 3:
        deep: Any = holder[key]
        for _ in range(draw.choice([1, 60, 70, 500])):
            deep = [deep] if draw.random() < 0.5 else {"a": deep}
        holder[key] = deep
    elif how == 4 and isinstance(holder, list):
        holder.insert(key, holder[key])
    else:
        holder[key] = draw.choice(VALUES)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every part of a value as what holds it and under which key; long lists by their ends."""
    found = []
    left = [value]
    while left:
        holder = left.pop()
        keys: list[Any] = []
        if isinstance(holder, dict):
            keys = list(holder)
        elif isinstance(holder, list):
            keys = [i for i in range(len(holder)) if i < 8 or i >= len(holder) - 2]
        found += [(holder, key) for key in keys]
        left += [holder[key] for key in keys]
    return found


def json_of(value: Any) -> str:
    """JSON text in which what is to be written as it is stands so."""
    text = json.dumps(value)
    for raw in RAW:
        text = text.replace(json.dumps(f"{_MARK}{raw}"), raw)
    return text


def _json(draw: Random, raw: bytes) -> bytes:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return _insert(draw, raw)
    text = json_of(changed_value(draw, value))
    if draw.random() < 0.15 and text.startswith('{"'):
        name = text[1:].split(":", 1)[0]
        text = f"{{{name}: {draw.randrange(9)}, {text[1:]}"  # a key given twice
    return text.encode("utf-8", "surrogatepass")


def _jsonl(draw: Random, raw: bytes) -> bytes:
    lines = raw.split(b"\n")
    number = draw.randrange(len(lines))
    lines[number] = _json(draw, lines[number])
    return b"\n".join(lines)


def _lines(draw: Random, raw: bytes) -> bytes:
    """YAML, CSV and text: a line dropped, doubled, moved, or its value replaced."""
    lines = raw.split(b"\n")
    number = draw.randrange(len(lines))
    line = lines[number]
    how = draw.randrange(5)
    if how == 0:
        del lines[number]
    elif how == 1:
        lines.insert(draw.randrange(len(lines)), line)
    elif how == 2:
        lines[number] = b"  " * draw.randrange(3) + line.strip()
    else:
        separator = b": " if b": " in line else b","
        parts = line.split(separator)
        new = draw.choice(TOKENS) if how == 3 else json_of(draw.choice(VALUES)).encode()
        parts[draw.randrange(len(parts))] = new
        lines[number] = separator.join(parts)
    return b"\n".join(lines)


def _safetensors(draw: Random, raw: bytes) -> bytes:
    """The header as JSON, with its length in front put right."""
    if len(raw) < 8:
        return _insert(draw, raw)
    (length,) = struct.unpack("<Q", raw[:8])
    header = _json(draw, raw[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


STRUCTURED: dict[str, Mutation] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".yaml": _lines,
    ".csv": _lines,
    ".txt": _lines,
    ".safetensors": _safetensors,
}


def damage(draw: Random, folder: Path) -> Path:
    """Damage one file of a folder, and say which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = draw.choice(files)
    path.write_bytes(mutated(draw, path.read_bytes(), path.suffix))
    return path
