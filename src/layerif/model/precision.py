"""The precision that a model's files are in, which may be narrower than the one it runs in."""

from __future__ import annotations

from typing import Any

import torch

_NOTED = "stored_precision"


def note_precision(model: Any, precision: torch.dtype) -> None:
    """Remember the precision of the files that a model was opened from."""
    setattr(model, _NOTED, precision)


def stored_precision(model: Any) -> torch.dtype:
    """The precision that a model is saved in.

    That of its files, where these are narrower than what it runs in; else what it runs in.
    """
    runs = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    noted: torch.dtype = getattr(model, _NOTED, runs)
    return noted if noted.itemsize < runs.itemsize else runs


def word_of(precision: torch.dtype) -> str:
    """What options call a precision, e.g. `bfloat16`."""
    return str(precision).removeprefix("torch.")
