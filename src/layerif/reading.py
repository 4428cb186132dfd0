"""Scores from files: a run folder, what `layerif metric` writes, or one number a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerif import budgets
from layerif.artifacts import METRIC_FORMAT, LayerScores, MetricScores
from layerif.errors import InputError
from layerif.files import read_json


def read_scores(path: str | Path) -> LayerScores | MetricScores | NDArray[np.float64]:
    """Scores from a run folder, or one number a layer from a `.json`, `.csv` or `.npy` file.

    JSON is what `layerif metric` writes, or holds a list of numbers; CSV one layer a line, the
    score in the last column, under a header or not.

    Raises:
        InputError: no such file, or not of that form.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        return LayerScores.load(path)
    readers = {".json": _read_json, ".csv": _read_csv, ".npy": _read_npy}
    if path.suffix not in readers:
        raise InputError(
            f"{path} is neither a run folder nor a {', '.join(readers)} file of one number a layer"
        )
    if not path.is_file():
        raise InputError(f"no scores at {path}: the file does not exist")
    found = readers[path.suffix](path)
    if isinstance(found, MetricScores):
        return found
    return budgets.check_scores(found, name=f"scores in {path}")


def _read_json(path: Path) -> Any:
    value = read_json(path, "a list of one number a layer")
    if isinstance(value, dict) and value.get("format") == METRIC_FORMAT:
        return MetricScores.parse(value, str(path))
    if not isinstance(value, list):
        raise InputError(f"{path} holds no list; expected one number a layer, like [0.1, 0.7]")
    return value


def _read_csv(path: Path) -> list[float]:
    try:
        # Spreadsheets begin UTF-8 with a mark, which would make a header of the first number.
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from None
    rows = [line.split(",")[-1].strip() for line in text.splitlines() if line]
    if (
        rows
        and rows[0][:1].isalpha()
        and rows[0].lower() not in ("na", "n/a", "nan", "none", "inf")
    ):
        rows = rows[1:]  # a header: a name, and not a value that is missing
    for number, row in enumerate(rows, start=1):
        if not _is_number(row):
            raise InputError(f"{path}: {row!r}, the last column of row {number}, is no number")
    return [float(row) for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a .npy file of numbers: {error}") from None
