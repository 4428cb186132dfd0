"""Regular expressions for names of modules, tried in a process that can be stopped.

Python's matching can take exponentially long, and cannot be interrupted from within. PEFT matches
the expressions of an adapter's configuration in this process, so they are tried beforehand on the
same names in another one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from layerif.errors import InputError

SECONDS = 5.0
TRY = """
import json, re, sys
patterns, texts = json.load(sys.stdin)
for pattern in patterns:
    print(json.dumps(pattern), flush=True)
    for text in texts:
        re.fullmatch(pattern, text)
"""


def check_patterns(patterns: Sequence[str], texts: Sequence[str], where: str) -> None:
    """Refuse what is no regular expression, or takes too long on these texts.

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
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"{where}: {pattern[:100]!r} is not a regular expression ({error})"
            ) from None
    doubtful = [pattern for pattern in patterns if re.search(r"[*+?{]", pattern)]
    if not doubtful:
        return
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", TRY],
            input=json.dumps([doubtful, list(texts)]).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as stopped:
        tried = (stopped.stdout or b"").decode().splitlines()
        pattern = json.loads(tried[-1]) if tried else doubtful[0]
        raise InputError(
            f"{where}: matching the regular expression {pattern[:100]!r} takes more than "
            f"{SECONDS:.0f} seconds; name the modules themselves, or give one without repetitions "
            "inside repetitions"
        ) from None
