"""Regular expressions from files of others, tried under a time limit before they are used.

Python's matcher takes exponential time for some expressions and cannot be stopped, so they are
tried on the very texts in a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from layerif.core.files.reading import brief, quoted
from layerif.errors import InputError

SECONDS = 5.0
_TRY = """
import json, re, sys
patterns, texts = json.load(sys.stdin)
for pattern in patterns:
    print(json.dumps(pattern), flush=True)
    compiled = re.compile(pattern)
    for text in texts:
        compiled.fullmatch(text)
"""
# A name as it is: nothing in it is repeated or a choice.
_PLAIN = re.compile(r"[\w.\\^$-]*")


def check_patterns(patterns: Sequence[str], texts: Sequence[str], where: str) -> None:
    """Refuse regular expressions that are not valid, or that take longer than `SECONDS` in all.

    Args:
        patterns: as they will be matched, whole.
        texts: that they will be matched against.
        where: they come from, for the message.

    Raises:
        InputError: names the expression.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError, ValueError, TypeError) as error:
            raise InputError(
                f"{where}: {brief(str(error), 200)} in the regular expression {quoted(pattern)}"
            ) from None
    doubtful = [pattern for pattern in patterns if not _PLAIN.fullmatch(pattern)]
    if not doubtful:
        return
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps([doubtful, list(texts)]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        tried = (error.stdout or b"").decode().split("\n")[:-1] or [json.dumps(doubtful[0])]
        raise InputError(
            f"{where}: matching the regular expression {quoted(json.loads(tried[-1]))} takes more "
            f"than {SECONDS:.0f} seconds; name the modules themselves, or give one without "
            "repetitions inside repetitions"
        ) from None
