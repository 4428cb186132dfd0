"""Plain text for calibration and for perplexity, in two parts that share no paragraph."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from layerif.core.files import READERS, file_hash, quoted, read_rows, read_text
from layerif.data.sources import Row, from_folder, from_hub, listing
from layerif.errors import InputError

Part = Literal["calibration", "evaluation"]

# What serves as calibration and evaluation text where a data directory has no train split.
FOLDER_SPLITS = ("validation", "test")

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
        separator: what stands between two documents in the text of a part.
        origin: where the text comes from and how it was divided, with the SHA-256 of both parts
            (plain JSON values only).
    """

    name: str
    calibration: list[str]
    evaluation: list[str]
    separator: str
    origin: dict[str, Any] = field(default_factory=dict)

    def text(self, part: Part) -> str:
        """All documents of a part as one string."""
        return self.separator.join(
            {"calibration": self.calibration, "evaluation": self.evaluation}[part]
        )


def wikitext2(data_dir: Path | None = None) -> Corpus:
    """WikiText-2: the raw version from the hub, or the tokenised one from a data directory.

    Raises:
        InputError: the hub cannot be reached, or the directory does not hold the data set.
    """
    if data_dir is None:
        repo, config = "Salesforce/wikitext", "wikitext-2-raw-v1"
        parts = [from_hub(repo, config, split, ["text"]) for split in ("train", "test")]
        # As published perplexities have it, although the rows bring line ends of their own.
        separator = "\n\n"
        origin = {
            "source": "hub",
            "repo": repo,
            "config": config,
            "calibration": "train",
            "evaluation": "test",
        }
    else:
        parts = [from_folder(data_dir, "wikitext2", split, ["text"]) for split in FOLDER_SPLITS]
        separator = ""
        origin = {
            "source": str(data_dir / "wikitext2"),
            "version": "tokenised (wikitext-2-v1)",
            "note": "rare words are <unk> here, so perplexities do not compare with published "
            "ones, which are measured on wikitext-2-raw-v1",
            "calibration": FOLDER_SPLITS[0],
            "evaluation": FOLDER_SPLITS[1],
        }
    calibration, evaluation = (
        [_text(row, f"wikitext2, row {number}") for number, row in enumerate(rows, start=1)]
        for rows in parts
    )
    return corpus_of("wikitext2", calibration, evaluation, separator, origin)


def python_docs(seed: int = 0) -> Corpus:
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
    calibration, evaluation = _set_apart(documents, seed)
    total = sum(map(len, found.values()))
    origin = {
        "source": "pydoc_data.topics",
        "python": platform.python_version(),
        "source_sha256": _sha256("\0".join(f"{name}\0{topics[name]}" for name in found)),
        "paragraphs": total,
        "repeated_paragraphs_dropped": total - len(seen),
        "split": f"whole topics, drawn by seed {seed}",
    }
    return corpus_of("python-docs", calibration, evaluation, "\n\n", origin)


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
    calibration, evaluation = _set_apart(_blocks(kept), seed)
    origin = {
        "source": str(path),
        "source_sha256": file_hash(path),
        "paragraphs": len(found),
        "repeated_paragraphs_dropped": len(found) - len(kept),
        "split": f"stretches of the text, drawn by seed {seed}",
    }
    if has_rows:
        origin["rows"] = len(texts)
    return corpus_of(str(path), calibration, evaluation, "\n\n", origin)


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


def corpus_of(
    name: str,
    calibration: list[str],
    evaluation: list[str],
    separator: str,
    origin: dict[str, Any],
) -> Corpus:
    """A corpus whose origin also has the SHA-256 of both its parts."""
    corpus = Corpus(name, calibration, evaluation, separator, origin)
    origin["sha256"] = {
        "calibration": _sha256(corpus.text("calibration")),
        "evaluation": _sha256(corpus.text("evaluation")),
    }
    return corpus


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


CORPORA: dict[str, Callable[[Path | None, int], Corpus]] = {
    "wikitext2": lambda data_dir, seed: wikitext2(data_dir),
    "python-docs": lambda data_dir, seed: python_docs(seed),
}
