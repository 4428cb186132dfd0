"""Tasks and corpora by name, or from a user's own files."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from layerif.errors import InputError
from layerif.tasks.agreement import agreement
from layerif.tasks.base import SPLITS, Example, Split, Task
from layerif.tasks.catalogue import CATALOGUE, load_declared
from layerif.tasks.corpora import CORPORA, Corpus, text_file
from layerif.tasks.own import READERS, load_own

__all__ = [
    "SPLITS",
    "Corpus",
    "Example",
    "Split",
    "Task",
    "corpus_names",
    "load_corpus",
    "load_sources",
    "load_task",
    "task_names",
]


def task_names() -> list[str]:
    """The names that `load_task` knows, sorted."""
    return sorted([*CATALOGUE, "agreement"])


def corpus_names() -> list[str]:
    """The names that `load_corpus` knows, sorted."""
    return sorted(CORPORA)


def load_task(name: str | Path, *, data_dir: Path | None = None, seed: int = 0) -> Task:
    """The task of a name, or the one in a user's file or folder.

    Args:
        name: one of `task_names()`, or a path as `layerif.tasks.own` describes.
        data_dir: a folder of parquet data sets to read declared tasks from, instead of the hub.
        seed: for the rows of `agreement`, and for splits that have to be carved out of others.

    Raises:
        InputError: the name is unknown, or the data cannot be read as a task.
    """
    if name == "agreement":
        return agreement(seed)
    if name in CATALOGUE:
        return load_declared(CATALOGUE[str(name)], data_dir, seed)
    if not _is_path(name):
        raise _unknown("task", str(name), task_names(), "a .jsonl, .parquet or .csv file")
    return load_own(Path(name), seed)


def load_corpus(name: str | Path, data_dir: Path | None = None, seed: int = 0) -> Corpus:
    """The corpus of a name, or of a user's text file.

    Args:
        name: one of `corpus_names()`, or the path of a UTF-8 text file.
        data_dir: a folder of parquet data sets to read `wikitext2` from, instead of the hub.
        seed: for what is set apart for evaluation, where the corpus comes undivided.

    Raises:
        InputError: the name is unknown, or the text cannot be read or divided.
    """
    if name in CORPORA:
        return CORPORA[str(name)](data_dir, seed)
    if not _is_path(name):
        raise _unknown("corpus", str(name), corpus_names(), "a UTF-8 text file")
    return text_file(Path(name), seed)


def load_sources(
    names: Sequence[str | Path], *, data_dir: Path | None = None, seed: int = 0
) -> list[Task | Corpus]:
    """Tasks and corpora together, in the order of their names, as evaluation takes them.

    A path is a task where it is a folder or a file of examples by its ending, and otherwise text.

    Raises:
        InputError: a name is unknown, or what it names cannot be read.
    """
    known = [*task_names(), *corpus_names()]
    sources: list[Task | Corpus] = []
    for name in names:
        path = Path(name)
        if name not in known and not _is_path(name):
            raise _unknown("task or corpus", str(name), known, "a file of examples or of text")
        if name in CORPORA or (name not in known and not _is_task(path)):
            sources.append(load_corpus(name, data_dir=data_dir, seed=seed))
        else:
            sources.append(load_task(name, data_dir=data_dir, seed=seed))
    return sources


def _is_task(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in READERS


def _is_path(name: str | Path) -> bool:
    path = Path(name)
    if not str(name).strip():
        raise InputError("a task or corpus has an empty name; leave it out, or give its name")
    return path.exists() or bool(path.suffix) or len(path.parts) > 1


def _unknown(kind: str, name: str, known: Sequence[str], file: str) -> InputError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? Known" if close else "known"
    return InputError(
        f"no {kind} is called {name!r}; {hint} are {', '.join(known)}, and the path of {file}"
    )
