"""The words that options take, the same in Python, on the command line and in recipes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args

from layerif.errors import InputError

Aggregation = Literal["all", "positive", "top", "negative"]
Orientation = Literal["direct", "inverse"]
OnConstant = Literal["error", "uniform"]
SparsityMap = Literal["layerif", "owl", "dlp", "uniform"]
Granularity = Literal["layer", "projection"]
CountsMap = Literal["power", "mola", "uniform"]
BitsMap = Literal["linear", "uniform"]
DepthMap = Literal["highest", "uniform", "last"]
DepthUnit = Literal["layer", "sublayer"]
CountsCompat = Literal["none", "authors"]
ScoreScale = Literal["minmax", "none"]
ColumnOrder = Literal["diagonal", "given"]
Ranges = Literal["weighted", "minmax"]
FolderFormat = Literal["float", "compressed-tensors"]
Offset = Literal["zero_point", "minimum"]
ScaleDtype = Literal["float16", "bfloat16"]
HiddenStatesPlace = Literal["auto", "memory", "disk"]
AlphaCompat = Literal["corrected", "reference"]
DlpStatistic = Literal["median", "mean"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
BlockGranularity = Literal["matrix", "projection", "layer"]
PruningTruth = Literal["isolated", "operating_point"]
TruthKind = Literal[PruningTruth, "capacity"]
Normalise = Literal["none", "per_parameter"]
Keep = Literal["auto", "memory", "disk", "passes"]
Preset = Literal["paper"]
PaddingSide = Literal["left", "right"]
PromptStyle = Literal["alpaca", "chat", "harness", "plain"]
TaskScoring = Literal["likelihood", "generation"]
Schedule = Literal["linear", "cosine", "constant"]


def instead_of(name: object, known: Iterable[str]) -> str:
    """The names there are, for a message on one that does not exist: the nearest first."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]}? There" if close else "there"
    return f"{hint} are {', '.join(known) or 'none'}"


def check_choice(value: str, choices: Any, name: str) -> None:
    """Refuse a `value` that is not among the strings of the Literal type `choices`.

    Raises:
        InputError: it is not; the message lists those that are.
    """
    if value not in get_args(choices):
        raise InputError(f"there is no {name} {value!r}; {instead_of(value, get_args(choices))}")
