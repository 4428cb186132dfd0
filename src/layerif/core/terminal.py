"""A terminal that foreign text can do nothing to.

Rows, headers, names of files and recipes are written by others. What would move the cursor, rename
the window or turn a line round is shown as the escape that Python writes for it, and brackets and
colons are characters, not rich's markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.text import Text

# Controls but for newline and tab, marks and overrides of direction, line separators, and halves of
# surrogate pairs, which no terminal can be sent.
_HARMFUL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def harmless(text: str) -> str:
    """The text with each harmful character as a visible escape: `\\x1b`, `\\u202e`."""
    return _HARMFUL.sub(lambda found: ascii(found[0])[1:-1], text)


def harmless_json(text: str) -> str:
    """JSON text that says the same, with harmful characters as JSON's own escapes."""
    return _HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Console(rich.console.Console):
    """rich's console with no markup, no emoji codes, and harmless text in whatever it prints."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        # Before the layout, so that columns are as wide as what is shown in them.
        return super().render_str(harmless(text), **options)

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        # And after it, for what comes as rich's own objects; rich's own controls are set apart.
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)
