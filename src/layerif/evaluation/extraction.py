"""From what a model wrote to the candidate that it answers with, or to none.

The *gist* of a candidate is what sets it apart: the candidate without "Answer:" and "The answer is"
before it and a full stop after it, so "B" of "Answer: The answer is B.". The rules:

1. A reply that is a candidate to the character, but for blanks around it, answers with it.
2. Otherwise gists are looked for at the beginning of the reply and after each lead-in ("Answer:",
   "the answer is", "the correct option is" and the like), wherever it is. The first of these
   places that has a gist counts, and there the longest: "New York City" before "New York". Case
   does not matter, nor do quotes, brackets and asterisks around a gist, nor the number of blanks.
3. A gist ends where a word or number does: "3" is not in "3.5", nor "well" in "well-known". After a
   single letter the reply, the line or the clause has to end: "B", "(B)" and "B. A dog" are B, and
   "A dog" is not A.
4. What is ambiguous is no answer: a gist that two candidates share, one joined to another ("A or
   B", "yes/no"), and the list of the options: a reply that begins with one candidate without a
   lead-in and has another at the beginning of a later line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_OPENING = r"\"'“‘«(\[*_`"
_CLOSING = r"\"'”’»)\]*_`"
_GAP = r"[^\S\n]"  # a blank within a line
_DECORATION = re.compile(rf"[\s{_OPENING}]*")
_LEAD_IN = re.compile(
    rf"\b(?:answer|option|choice)\b[\s{_CLOSING}]*(?:is\b|[:=])[:\s]*", re.IGNORECASE
)
_BEFORE_GIST = re.compile(r"(?:answer\s*:)?\s*(?:the answer is\b)?\s*:?", re.IGNORECASE)
_AFTER_WORD = r"(?!\w|[-'’]\w|[.,]\d)"
_AFTER_LETTER = rf"(?=\s*(?:\n|$)|[.,:;{_CLOSING}](?!\w))"
_JOINED = re.compile(
    rf"(?:{_GAP}|[{_CLOSING}])*(?:[,/;&|]|\b(?:or|and|nor)\b)+(?:{_GAP}|[,{_OPENING}]|\b(?:or|and)\b)*",
    re.IGNORECASE,
)


class _Gist(NamedTuple):
    """What is looked for: a candidate's gist, and patterns of it as an answer and in a list."""

    candidate: int
    text: str
    stated: re.Pattern[str]
    listed: re.Pattern[str]


class _Found(NamedTuple):
    """The first place with an answer: of which candidate (None for several of one gist), whether
    after a lead-in, and where the gist ends.
    """

    candidate: int | None
    led: bool
    end: int


def extract_answer(reply: str, candidates: Sequence[str]) -> int | None:
    """The index of the candidate that a reply answers with; None where it cannot be read."""
    same = [i for i, candidate in enumerate(candidates) if candidate.strip() == reply.strip()]
    if same:
        return same[0] if len(same) == 1 else None
    gists = _gists(tuple(candidates))
    found = _find(reply, gists)
    if found is None or found.candidate is None:
        return None
    others = [gist for gist in gists if gist.candidate != found.candidate]
    joined = _JOINED.match(reply, found.end)
    if joined and any(gist.listed.match(reply, joined.end()) for gist in others):
        return None
    if not found.led:
        lines = (_past_decoration(reply, line.end()) for line in re.finditer("\n", reply))
        if any(gist.stated.match(reply, start) for start in lines for gist in others):
            return None
    return found.candidate


def is_settled(reply: str, candidates: Sequence[str]) -> bool:
    """Whether more text cannot change the answer: the line with it and its lead-in is over."""
    found = _find(reply[: reply.rfind("\n") + 1], _gists(tuple(candidates)))
    return found is not None and found.led


def _find(reply: str, gists: Sequence[_Gist]) -> _Found | None:
    """The first place that has a gist."""
    places = [(0, False), *((lead_in.end(), True) for lead_in in _LEAD_IN.finditer(reply))]
    for place, led in places:
        start = _past_decoration(reply, place)
        matches = [(gist, match) for gist in gists if (match := gist.stated.match(reply, start))]
        if not matches:
            continue
        # The longest; of two that differ in case alone, the one as written.
        ranks = [(len(gist.text), match["gist"] == gist.text) for gist, match in matches]
        best = [pair for pair, rank in zip(matches, ranks, strict=True) if rank == max(ranks)]
        return _Found(best[0][0].candidate if len(best) == 1 else None, led, best[0][1].end())
    return None


def _past_decoration(text: str, start: int) -> int:
    match = _DECORATION.match(text, start)
    return start if match is None else match.end()


@lru_cache(maxsize=4096)
def _gists(candidates: tuple[str, ...]) -> tuple[_Gist, ...]:
    return tuple(_gist(index, candidate) for index, candidate in enumerate(candidates))


def _gist(index: int, candidate: str) -> _Gist:
    text = candidate.strip()
    before = _BEFORE_GIST.match(text)
    text = text[before.end() if before else 0 :]
    text = re.sub(rf"^[\s{_OPENING}]+|[\s{_CLOSING}.!?]+$", "", text) or candidate.strip()
    blank = r"\s+" if "\n" in text else f"{_GAP}+"
    words = blank.join(map(re.escape, text.split()))
    letter = len(text) == 1 and text.isalpha()
    named = rf"(?:(?:option|choice|letter){_GAP}+[{_OPENING}]*)?" if letter else ""
    after = _AFTER_LETTER if letter else _AFTER_WORD
    return _Gist(
        index,
        text,
        re.compile(rf"{named}(?P<gist>{words}){after}", re.IGNORECASE),
        re.compile(rf"{named}{words}(?!\w)", re.IGNORECASE),
    )
