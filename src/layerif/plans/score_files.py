"""Scores from files: a run folder, what `layerif metric` writes, or one number a layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerif.artifacts import METRIC_FORMAT, LayerScores, MetricScores
from layerif.core.files import check_columns, quoted, read_cells, read_json, read_npy
from layerif.errors import InputError
from layerif.plans.maps.scores import check_scores

ONE_A_LAYER = "one number a layer"
# Words in the first row that are a missing value and not a header.
MISSING = ("na", "n/a", "nan", "none", "inf")


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
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": _read_json,
        ".csv": _read_csv,
        ".npy": lambda path: read_npy(path, ONE_A_LAYER),
    }
    if path.suffix not in readers:
        raise InputError(
            f"{path} is neither a run folder nor a {', '.join(readers)} file of {ONE_A_LAYER}"
        )
    found = readers[path.suffix](path)
    if isinstance(found, MetricScores):
        return found
    return check_scores(found, name=f"scores in {path}")


def _read_json(path: Path) -> Any:
    value = read_json(path, ONE_A_LAYER)
    if isinstance(value, dict) and value.get("format") == METRIC_FORMAT:
        return MetricScores.parse(value, str(path))
    if not isinstance(value, list):
        raise InputError(f"{path} holds {quoted(value)}; expected {ONE_A_LAYER}, like [0.1, 0.7]")
    return value


def _read_csv(path: Path) -> list[float]:
    rows = read_cells(path, ONE_A_LAYER)
    last = [row[-1].strip() for row in rows]
    if last and last[0][:1].isalpha() and last[0].lower() not in MISSING:
        check_columns([name for name in rows[0] if name], f"{path}, row 0")
        del last[0]
    scores = []
    for row, cell in enumerate(last, start=1):
        try:
            scores.append(float(cell))
        except ValueError:
            raise InputError(
                f"{path}, row {row}: the last column is {quoted(cell)}, not a number"
            ) from None
    return scores
