"""Rows and numbers from files of others: JSONL, CSV, parquet, `.npy`, and our safetensors.

A column given twice is refused, as one of the two would be lost.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerif.core.files.plain import parse_json
from layerif.core.files.reading import (
    MOST_TEXT,
    brief,
    cause,
    check_file,
    parsing,
    quoted,
    read_text,
)
from layerif.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]
# Rows of a parquet file that are decoded at once.
ROWS_AT_ONCE = 8192
_NPY = b"\x93NUMPY"
# Bytes of a file of numbers: an influence matrix has 8 for each layer, projection and sample.
MOST_NUMBERS = 16 << 30


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Row]]:
    """The rows of a `.jsonl`, `.parquet` or `.csv` file, each after where it is, for a message.

    Rows of JSONL are numbered by line, so that an editor finds them. A cell of CSV is a text, or
    None where it is empty.

    Args:
        path: its ending says what it is.
        columns: read these alone from parquet, where it has them all.

    Raises:
        InputError: the file cannot be read, or a row of it.
    """
    check_file(path, "a file of rows")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path} has the ending {quoted(path.suffix)}; expected rows in one of "
            f"{', '.join(READERS)}"
        )
    for number, row in reader(path, columns):
        yield f"{path}, row {number}", row


def _read_jsonl(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    what = "one JSON object a line"
    text = read_text(path, what).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = parse_json(line, str(path), what, first_line=number)
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number} holds {quoted(row)}; expected {what}")
            yield number, row


def _read_csv(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    rows = read_cells(path, "a CSV file with a header")
    if not rows:
        return
    header = rows[0]
    check_columns([name for name in header if name], f"{path}, row 0")
    for number, cells in enumerate(rows[1:], start=1):
        if len(cells) != len(header):
            raise InputError(
                f"{path}, row {number} has {len(cells)} cells, and the header {len(header)}; "
                "expected as many"
            )
        yield number, {n: cell or None for n, cell in zip(header, cells, strict=True) if n}


def read_cells(path: Path, what: str) -> list[list[str]]:
    """All rows of a CSV file as cells, but for empty rows.

    Raises:
        InputError: it cannot be read; names the row, the header being row 0.
    """
    text = read_text(path, what)
    rows: list[list[str]] = []
    # The longest cell is a setting of the whole module, which is put back.
    before = csv.field_size_limit(len(text) + 1)
    try:
        rows.extend(row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row)
    except csv.Error as error:
        raise InputError(f"{path}, row {len(rows)}: {cause(error)}; expected {what}") from None
    finally:
        csv.field_size_limit(before)
    return rows


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    with parsing(path, "a parquet file"):
        rows = read_parquet(path, columns).to_pylist()
    yield from enumerate(rows, start=1)


READERS: dict[str, Callable[[Path, Sequence[str] | None], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Any:
    """The parquet file as a pyarrow table.

    Args:
        path: one file, not a data set: folder names on the way to it are not columns.
        columns: read these alone, where it has them all.

    Raises:
        InputError: it cannot be read, has a column twice, or is too large.
    """
    import pyarrow
    import pyarrow.parquet

    what = "a parquet file"
    check_file(path, what)
    with parsing(path, what), pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        check_columns(names, str(path))
        wanted = list(columns) if columns and set(columns) <= set(names) else names
        parts, size = [], 0
        for part in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
            part.validate(full=True)
            size += part.nbytes
            if size > MOST_TEXT:
                raise InputError(f"{path} holds over {MOST_TEXT / 1e9:.3g} GB; read less of it")
            parts.append(part)
        schema = pyarrow.schema([file.schema_arrow.field(name) for name in wanted])
        return pyarrow.Table.from_batches(parts, parts[0].schema if parts else schema)


def check_columns(names: Sequence[str], where: str) -> None:
    """Refuse a name that is there twice.

    Raises:
        InputError: there is one.
    """
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"{where} has the column {quoted(name)} {names.count(name)} times; expected once"
            )


def read_npy(path: Path, what: str) -> NDArray[Any]:
    """The numbers of a `.npy` file.

    Raises:
        InputError: it cannot be read, is damaged, or holds something other than real numbers.
    """
    import numpy as np

    check_file(path, what)
    with parsing(path, what):
        with path.open("rb") as file:
            if file.read(len(_NPY)) != _NPY:
                raise InputError(f"{path} does not begin as a .npy file does; expected {what}")
        # Mapped, so that no size is believed before the file has as many bytes.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if values.dtype.kind not in "fiu":
            raise InputError(f"{path} holds values of type {values.dtype}; expected {what}")
        return np.array(values)


def read_numbers(path: Path, what: str) -> dict[str, NDArray[np.float64]]:
    """The tensors of a safetensors file, brought to float64.

    Raises:
        InputError: it cannot be read, is damaged, or holds something other than floats.
    """
    import numpy as np
    from safetensors import safe_open

    check_file(path, what, MOST_NUMBERS)
    found = {}
    with parsing(path, what), safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118, no mapping
            values = file.get_tensor(name)
            if values.dtype.kind != "f":
                raise InputError(
                    f"{path}: {brief(name)} is of type {values.dtype}; expected {what}"
                )
            found[name] = values.astype(np.float64, copy=False)
    return found
