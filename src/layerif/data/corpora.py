"""Text for calibration and for perplexity: corpora, a task's rows, or the model's own text.

A corpus has two parts that share no paragraph.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from layerif.core.files import READERS, file_hash, quoted, read_rows, read_text
from layerif.data.base import Task
from layerif.data.sources import Row, from_folder, from_hub, listing
from layerif.data.styles import Request
from layerif.errors import InputError

Part = Literal["calibration", "evaluation"]

SELF = "self"
# The column of running text.
TEXT = "text"
# Of the characters, how much is set apart for evaluation: at least this, and if the units are
# small enough no more than that.
EVALUATION_SHARE = (0.20, 0.25)
# Into how many stretches a user's text is cut before some are set apart.
BLOCKS = 20


@dataclass(frozen=True)
class Corpus:
    """A named text in two parts.

    Attributes:
        name: what the user asked for.
        calibration: documents to choose calibration text from.
        evaluation: documents to measure perplexity on.
        separator: what is put between two documents in the text of a part.
        origin: where the text comes from and how it was divided (plain JSON values only).
    """

    name: str
    calibration: list[str]
    evaluation: list[str]
    separator: str = "\n\n"
    origin: dict[str, Any] = field(default_factory=dict)

    def text(self, part: Part) -> str:
        """All documents of a part as one string."""
        return self.separator.join(getattr(self, part))

    def hashed(self) -> Corpus:
        """The corpus with the SHA-256 of both parts in its origin."""
        hashes = {part: _sha256(self.text(part)) for part in get_args(Part)}
        return replace(self, origin={**self.origin, "sha256": hashes})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class NamedCorpus:
    """A corpus that can be had by name.

    Attributes:
        load: the corpus, from the data directory and by the seed that are asked for.
        holds: what it holds, in a few words.
        source: where its text comes from.
    """

    load: Callable[[Request], Corpus]
    holds: str
    source: str


@dataclass(frozen=True)
class SelfText:
    """In the place of a corpus: text that the model samples from itself."""

    name: str = SELF


def training_text(task: Task) -> Corpus:
    """A task's training rows as calibration text, in their order: each prompt with its completion.

    There is no evaluation part: perplexity is measured on corpora.

    Raises:
        InputError: the task has no training rows.
    """
    rows = task.sample("train", None, 0)
    if not rows:
        raise InputError(f"task {task.name} has no training rows to calibrate on; name a corpus")
    origin = {"task": task.name, "split": "train", "rows": len(rows), "origin": task.origin}
    texts = [row.prompt + row.completion for row in rows]
    return Corpus(task.name, texts, [], origin=origin).hashed()


def wikitext2(request: Request) -> Corpus:
    """WikiText-2: the raw version from the hub, or the tokenised one from a data directory.

    Raises:
        InputError: the hub cannot be reached, or the directory does not hold the data set.
    """
    if request.folder is None:
        repo, config = "Salesforce/wikitext", "wikitext-2-raw-v1"
        splits = ("train", "test")
        parts = [from_hub(repo, config, split, [TEXT]) for split in splits]
        # As published perplexities have it, although the rows bring line ends of their own.
        separator = "\n\n"
        origin = {"source": "hub", "repo": repo, "config": config}
    else:
        # There is no train split.
        splits = ("validation", "test")
        parts = [from_folder(request.folder, "wikitext2", split, [TEXT]) for split in splits]
        separator = ""
        origin = {
            "source": str(request.folder / "wikitext2"),
            "version": "tokenised (wikitext-2-v1)",
            "note": "rare words are <unk> here, so perplexities do not compare with published "
            "ones, which are measured on wikitext-2-raw-v1",
        }
    origin |= dict(zip(("calibration", "evaluation"), splits, strict=True))
    calibration, evaluation = (
        [_text(row, f"wikitext2, row {number}") for number, row in enumerate(rows, start=1)]
        for rows in parts
    )
    return Corpus("wikitext2", calibration, evaluation, separator, origin)


WIKITEXT2 = NamedCorpus(wikitext2, "Wikipedia articles", "Salesforce/wikitext (wikitext-2-raw-v1)")


def python_docs(request: Request) -> Corpus:
    """The language reference that the running CPython carries for `help()`, by topics.

    Topics repeat whole paragraphs of each other. Of paragraphs that differ at most in white space
    the first is kept, so that none is on both sides; then whole topics are set apart.

    Raises:
        InputError: this Python comes without the topics.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError(
            "corpus python-docs is the text of pydoc_data.topics, which this Python was installed "
            "without; use another corpus, or the path of a text file"
        ) from None
    found = {name: _paragraphs(text) for name, text in sorted(topics.items())}
    seen: set[str] = set()
    kept = {name: _first_occurrences(paragraphs, seen) for name, paragraphs in found.items()}
    documents = ["\n\n".join(paragraphs) for paragraphs in kept.values() if paragraphs]
    total = sum(map(len, found.values()))
    origin = {
        "source": "pydoc_data.topics",
        "python": platform.python_version(),
        "source_sha256": _sha256("\0".join(f"{name}\0{topics[name]}" for name in found)),
        "paragraphs": total,
        "repeated_paragraphs_dropped": total - len(seen),
        "split": f"whole topics, drawn by seed {request.seed}",
    }
    return Corpus("python-docs", *_set_apart(documents, request.seed), origin=origin)


PYTHON_DOCS = NamedCorpus(python_docs, "the language reference", "this Python")


def text_file(path: Path, seed: int = 0) -> Corpus:
    """A user's text: paragraphs between blank lines, repeated paragraphs kept once.

    A file of plain text in UTF-8, or of rows (JSONL, CSV, parquet) with a column `text`, which are
    read one after the other. The text is cut into stretches of some length, each one document, and
    a fifth of it is set apart for evaluation.

    Raises:
        InputError: the file cannot be read, or has fewer than two distinct paragraphs.
    """
    if has_rows := path.suffix.lower() in READERS:
        texts = [_text(row, where) for where, row in read_rows(path, [TEXT])]
        text = "\n\n".join(texts)
    else:
        text = read_text(path, "a text file")
    found = _paragraphs(text)
    kept = _first_occurrences(found, set())
    if len(kept) < 2:
        raise InputError(
            f"{path} has {len(kept)} different paragraph{'' if len(kept) == 1 else 's'}; expected "
            "at least two, one each for calibration and evaluation, with a blank line between them"
        )
    origin = {
        "source": str(path),
        "source_sha256": file_hash(path),
        "paragraphs": len(found),
        "repeated_paragraphs_dropped": len(found) - len(kept),
        "split": f"stretches of the text, drawn by seed {seed}",
    }
    if has_rows:
        origin["rows"] = len(texts)
    return Corpus(str(path), *_set_apart(_blocks(kept), seed), origin=origin)


def _text(row: Row, where: str) -> str:
    """The text of a row; one without is empty."""
    if TEXT not in row:
        raise InputError(
            f"{where} has the columns {listing(list(row))}; expected a column {TEXT}, or for tasks "
            "prompt and completion"
        )
    text = row[TEXT]
    if not isinstance(text, str | None):
        raise InputError(f"{where}: the {TEXT} must be a text, not {quoted(text)}")
    return text or ""


def _paragraphs(text: str) -> list[str]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return [part.strip("\n") for part in re.split(r"\n\s*\n", lines) if part.strip()]


def _first_occurrences(paragraphs: Iterable[str], seen: set[str]) -> list[str]:
    """The paragraphs not `seen` before, white space aside; adds them to `seen`."""
    kept = []
    for paragraph in paragraphs:
        key = " ".join(paragraph.split())
        if key not in seen:
            seen.add(key)
            kept.append(paragraph)
    return kept


def _blocks(paragraphs: Sequence[str]) -> list[str]:
    """The paragraphs in at most `BLOCKS` contiguous runs of about the same length."""
    share = sum(map(len, paragraphs)) / BLOCKS
    blocks: dict[int, list[str]] = {}
    before = 0
    for paragraph in paragraphs:
        # A paragraph belongs to the run that its middle falls into.
        blocks.setdefault(int((before + len(paragraph) / 2) / share), []).append(paragraph)
        before += len(paragraph)
    return ["\n\n".join(block) for block in blocks.values()]


def _set_apart(documents: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Calibration and evaluation documents, in their order; both have at least one."""
    import numpy as np

    total = sum(map(len, documents))
    least, most = (share * total for share in EVALUATION_SHARE)
    chosen: set[int] = set()
    taken = 0
    for i in np.random.default_rng(seed).permutation(len(documents)).tolist():
        if taken < least and taken + len(documents[i]) <= most:
            chosen.add(i)
            taken += len(documents[i])
    chosen = chosen or {min(range(len(documents)), key=lambda i: len(documents[i]))}
    return (
        [text for i, text in enumerate(documents) if i not in chosen],
        [text for i, text in enumerate(documents) if i in chosen],
    )
