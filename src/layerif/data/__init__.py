"""Tasks and corpora by name, or from a user's own files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from layerif.core.choices import PromptStyle
from layerif.core.files import READERS, read_rows
from layerif.data.base import SPLITS as SPLITS
from layerif.data.base import Example as Example
from layerif.data.base import Task
from layerif.data.corpora import SELF, TEXT, Corpus, SelfText, text_file, training_text
from layerif.data.own import COLUMNS, load_own
from layerif.data.registry import CORPORA, TASKS
from layerif.data.styles import Request
from layerif.errors import InputError


class Listing(NamedTuple):
    """A task or corpus that can be had by name.

    Attributes:
        name: what to ask for.
        source: where it comes from.
        candidates: how many answers a row offers; empty for a corpus.
        asks: what a task asks, or what a corpus holds, in a few words.
    """

    name: str
    source: str
    candidates: str
    asks: str


def listings() -> list[Listing]:
    """All tasks and then all corpora that have a name, each sorted; nothing is loaded."""
    tasks = ((name, TASKS.find(name)) for name in task_names())
    corpora = ((name, CORPORA.find(name)) for name in corpus_names())
    return [
        *(Listing(name, task.source, task.candidates, task.asks) for name, task in tasks),
        *(Listing(name, corpus.source, "", corpus.holds) for name, corpus in corpora),
    ]


def task_names() -> list[str]:
    """The names that `load_task` knows, sorted."""
    return sorted(TASKS.names())


def corpus_names() -> list[str]:
    """The names that `load_corpus` knows, sorted."""
    return sorted(CORPORA.names())


def load_task(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    style: PromptStyle = "alpaca",
    tokenizer: Any = None,
    template_options: Mapping[str, Any] | None = None,
) -> Task:
    """The task of a name, or the one in a user's file or folder.

    Args:
        name: one of `task_names()`, or a path as `layerif.data.own` describes.
        data_dir: a folder of parquet data sets to read declared tasks from, instead of the hub.
        seed: for the rows of generated tasks, and for splits that are carved out of others.
        style: how an instruction becomes a prompt, see `layerif.data.styles`. The prompts in a
            user's file are taken as written, and with `chat` as a user's messages.
        tokenizer: of the model whose chat template the style `chat` takes.
        template_options: variables of that template, such as `{"enable_thinking": False}`.

    Raises:
        InputError: the name is unknown, the data cannot be read as a task, or the task cannot be
            had in that style.
    """
    request = Request(data_dir, seed, style, tokenizer, template_options)
    known = task_names()
    if name not in known and not _is_path(name):
        raise _unknown("task", name, known, "a .jsonl, .parquet or .csv file")
    task = TASKS.find(str(name)) if name in known else None
    if style == "harness" and not (task and task.in_harness):
        others = (each for each in known if TASKS.find(each).in_harness)
        raise InputError(
            f"task {name} cannot be asked in the style harness, in the words of "
            f"lm-evaluation-harness; those that can are {', '.join(others)}"
        )
    if style == "chat" and task and task.continues:
        raise InputError(
            f"task {name} goes on with a text and gives no instruction, so there is no message "
            "that a chat template could hold; leave out the prompt style chat for this task"
        )
    return (task.load(request) if task else load_own(Path(name), request)).hashed()


def load_corpus(name: str | Path, data_dir: str | Path | None = None, seed: int = 0) -> Corpus:
    """The corpus of a name, or of a user's text file.

    Args:
        name: one of `corpus_names()`, or the path of a UTF-8 text file, or of a `.jsonl`, `.csv` or
            `.parquet` file with a column `text`.
        data_dir: a folder of parquet data sets to read `wikitext2` from, instead of the hub.
        seed: for what is set apart for evaluation, where the corpus comes undivided.

    Raises:
        InputError: the name is unknown, or the text cannot be read or divided.
    """
    known = corpus_names()
    if name in known:
        return CORPORA.find(str(name)).load(Request(data_dir, seed)).hashed()
    if not _is_path(name):
        raise _unknown("corpus", name, known, "a UTF-8 text file")
    return text_file(Path(name), seed).hashed()


def load_calibration(name: str | Path, **how: Any) -> Corpus | SelfText:
    """What to calibrate on: a corpus, a task's training rows as text, or `self`.

    The arguments are those of `load_task`, and `self` is text that the model samples from itself.

    Raises:
        InputError: the name is unknown, or what it names cannot be read.
    """
    if name == SELF:
        return SelfText()
    known = [SELF, *corpus_names(), *task_names()]
    if name not in known and not _is_path(name):
        raise _unknown("calibration text", name, known, "a file of text or of examples")
    (source,) = load_sources([name], **how)
    return training_text(source) if isinstance(source, Task) else source


def load_sources(names: Sequence[str | Path], **how: Any) -> list[Task | Corpus]:
    """Tasks and corpora together, in the order of their names, as evaluation takes them.

    A path is a task where it is a folder or a file of examples, and otherwise text.
    The arguments are those of `load_task`.

    Raises:
        InputError: a name is unknown, or what it names cannot be read.
    """
    request = Request(**how)
    known = [*task_names(), *corpus_names()]
    sources: list[Task | Corpus] = []
    for name in names:
        if name not in known and not _is_path(name):
            raise _unknown("task or corpus", name, known, "a file of examples or of text")
        if is_task(name):
            sources.append(load_task(name, **how))
        else:
            sources.append(load_corpus(name, request.data_dir, request.seed))
    return sources


def is_task(name: str | Path) -> bool:
    """Whether `load_sources` takes a name or path as a task, and not as a corpus.

    An unknown name counts as a task: loading it says what is wrong.
    """
    if name in TASKS.names() or name in CORPORA.names() or not _is_path(name):
        return name not in CORPORA.names()
    path = Path(name)
    if path.is_dir() or path.suffix.lower() not in READERS:
        return path.is_dir()
    first = next((row for _, row in read_rows(path, [TEXT, *COLUMNS])), {})
    return TEXT not in first or "prompt" in first


def has_style(name: str, style: PromptStyle) -> bool:
    """Whether a style changes the prompts of a task, or is refused when it is loaded.

    Args:
        name: of a task, or the path of a user's file, whose prompts only `chat` changes.
        style: which is asked for.
    """
    all_change = style in ("chat", "harness")
    if name in TASKS.names():
        return all_change or not TASKS.find(name).continues
    return all_change if _is_path(name) else name != SELF


def _is_path(name: str | Path) -> bool:
    path = Path(name)
    if not str(name).strip():
        raise InputError("a task or corpus has an empty name; leave it out, or give its name")
    return path.exists() or bool(path.suffix) or len(path.parts) > 1


def _unknown(kind: str, name: str | Path, known: Sequence[str], file: str) -> InputError:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]}? Known" if close else "known"
    return InputError(
        f"no {kind} is called {str(name)!r}; {hint} are {', '.join(known)}, and the path of {file}"
    )
