"""Links in README and docs lead to files, and to headings in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def headings(page):
    """The anchors of a page, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        place, _, anchor = target.partition("#")
        if "://" in place or place.startswith("mailto:"):
            continue
        found = (page.parent / place).resolve() if place else page
        assert found.exists(), target
        if anchor:
            assert anchor in headings(found), target


def test_a_broken_link_would_be_seen(tmp_path):
    (page := tmp_path / "page.md").write_text("# A title: with `code`, twice\n[x](page.md#none)")
    assert headings(page) == {"a-title-with-code-twice"}
    with pytest.raises(AssertionError):
        test_every_link_leads_somewhere(page)
