"""Files that others have written: each failure is one paragraph that begins with the cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layerif.errors import InputError


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file that a person may have edited.

    Raises:
        InputError: the file is missing or is not JSON (with the line), naming `what` was expected;
            NaN and Infinity, which Python's reader would take, are no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected {what}") from None
    except IsADirectoryError:
        raise InputError(f"expected {what} at {path}, which is a folder") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); expected {what}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON has")
