"""The header of a GGUF file, with every length in it checked against the size of the file.

    "GGUF", version, counts | key, type, value ... | name, shape, type, offset ... | padding | data

The reader of the package gguf trusts a header: a damaged length makes it fill the memory, or read
the wrong bytes. So the header is walked here first, by the rules of llama.cpp.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from layerif.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "B",
}
# Far more than any vocabulary, merges, tensors or layers that there are.
MOST_ITEMS = 4_000_000
MOST_LAYERS = 2_000
ALIGNMENT = 32


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a GGUF file: its name, its shape, innermost first, and its quantisation."""

    name: str
    shape: tuple[int, ...]
    quantisation: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def stored_tensors(file: Path) -> list[StoredTensor]:
    """The tensors of a GGUF file, by its header.

    Raises:
        InputError: it is not a GGUF file, or a damaged or unfinished one; says at which byte.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise InputError(f"{file} does not begin with the bytes 'GGUF' of a GGUF file")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Header(data).tensors()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(
            f"{error}: the GGUF file {file} is damaged or not whole; fetch it again"
        ) from None


class _Header:
    """A walk through a header; whatever is wrong in it is a ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(MAGIC)
        self._order = "<"

    def tensors(self) -> list[StoredTensor]:
        version = self._number("I")
        if version & 0xFFFF == 0:
            # Written by a machine of the other byte order.
            self._order, self._at = ">", len(MAGIC)
            version = self._number("I")
        if version not in VERSIONS:
            raise ValueError(f"the version is {version}, and 2 or 3 is expected")
        tensors, entries = self._count("tensors"), self._count("entries")
        metadata: dict[str, int | float | str] = {}
        for _ in range(entries):
            key = self._text()
            if key in metadata:
                raise ValueError(f"the entry {key} comes twice")
            metadata[key] = self._value()
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise ValueError("general.architecture is missing")
        layers = metadata.get(f"{architecture}.block_count")
        if not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
            raise ValueError(f"{architecture}.block_count is {layers}")
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"the alignment is {alignment}, and a power of two is expected")
        return self._table(tensors, alignment)

    def _table(self, count: int, alignment: int) -> list[StoredTensor]:
        if count == 0:
            raise ValueError("the file has no tensors")
        tensors: dict[str, StoredTensor] = {}
        end = 0  # of the data so far, from where it begins
        for _ in range(count):
            name = self._text()
            if name in tensors:
                raise ValueError(f"the tensor {name} comes twice")
            dimensions = self._number("I")
            if not 1 <= dimensions <= 4:
                raise ValueError(f"the tensor {name} has {dimensions} dimensions")
            shape = tuple(self._number("Q") for _ in range(dimensions))
            try:
                kind = GGMLQuantizationType(self._number("I"))
                together, size = GGML_QUANT_SIZES[kind]
            except (ValueError, KeyError):
                raise ValueError(f"the tensor {name} is of an unknown type") from None
            offset = self._number("Q")
            if not all(shape) or shape[0] % together:
                raise ValueError(f"the tensor {name} of type {kind.name} has the shape {shape}")
            if offset != end:
                raise ValueError(f"the tensor {name} begins at {offset} by its entry, not at {end}")
            tensors[name] = StoredTensor(name, shape, kind.name)
            stop = end + tensors[name].numel // together * size
            if stop > len(self._data):
                raise ValueError(f"the file ends within the tensor {name}")
            end = -(-stop // alignment) * alignment
        begin = -(-self._at // alignment) * alignment
        if begin + stop > len(self._data):
            raise ValueError(f"the file ends within the tensor {name}")
        return list(tensors.values())

    def _kind(self) -> GGUFValueType:
        number = self._number("I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise ValueError(f"the type {number} at byte {self._at - 4} is unknown") from None

    def _value(self) -> int | float | str:
        """A number or text; of a list its length alone."""
        kind = self._kind()
        if kind == GGUFValueType.STRING:
            return self._text()
        if kind != GGUFValueType.ARRAY:
            return self._unpacked(SCALARS[kind])
        inner = self._kind()
        if inner == GGUFValueType.ARRAY:
            raise ValueError(f"a list of lists is at byte {self._at - 4}")
        count = self._count("items")
        if inner == GGUFValueType.STRING:
            for _ in range(count):
                self._text()
        else:
            self._skip(count * struct.calcsize(SCALARS[inner]))
        return count

    def _count(self, what: str) -> int:
        count = self._number("Q")
        if count > MOST_ITEMS:
            raise ValueError(f"the number of {what} at byte {self._at - 8} is {count}")
        return count

    def _text(self) -> str:
        length = self._number("Q")
        begin = self._at
        self._skip(length)
        return self._data[begin : self._at].decode()

    def _number(self, form: str) -> int:
        return int(self._unpacked(form))

    def _unpacked(self, form: str) -> int | float:
        begin = self._at
        self._skip(struct.calcsize(form))
        value: int | float = struct.unpack_from(self._order + form, self._data, begin)[0]
        return value

    def _skip(self, count: int) -> None:
        if self._at + count > len(self._data):
            raise ValueError(f"the file ends within what begins at byte {self._at} of its header")
        self._at += count
