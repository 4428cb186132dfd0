"""Tasks and corpora by name, or from a user's own files."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from layerif.core.choices import PromptStyle
from layerif.core.files import READERS, read_rows
from layerif.data.agreement import agreement
from layerif.data.base import SPLITS, Example, Split, Task
from layerif.data.calibration import SELF, SelfText, training_text
from layerif.data.catalogue import CATALOGUE, IN_HARNESS
from layerif.data.corpora import CORPORA, TEXT, Corpus, text_file
from layerif.data.declared import load_declared
from layerif.data.facts import facts
from layerif.data.own import COLUMNS, load_own
from layerif.data.styles import check_template_options
from layerif.errors import InputError

__all__ = [
    "SPLITS",
    "Corpus",
    "Example",
    "Listing",
    "SelfText",
    "Split",
    "Task",
    "corpus_names",
    "has_style",
    "is_task",
    "listings",
    "load_calibration",
    "load_corpus",
    "load_sources",
    "load_task",
    "task_names",
]

# What makes each generated task, how many candidates its rows have, and what it asks.
GENERATED: dict[str, tuple[Callable[[int, PromptStyle, Any, Any], Task], str, str]] = {
    "agreement": (agreement, "2", "which continuation is grammatical?"),
    "facts": (facts, "4", "a short invented passage and a question about it"),
}


@dataclass(frozen=True, slots=True)
class Listing:
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
    tasks = [Listing(name, "generated", *about[1:]) for name, about in GENERATED.items()]
    for spec in CATALOGUE.values():
        where = f"{spec.repo} ({spec.config})" if spec.config else spec.repo
        count = str(len(spec.answers)) if spec.answers else spec.count
        tasks.append(Listing(spec.name, where, count, spec.asks))
    corpora = [
        Listing("python-docs", "this Python", "", "the language reference"),
        Listing("wikitext2", "Salesforce/wikitext (wikitext-2-raw-v1)", "", "Wikipedia articles"),
    ]
    return [*sorted(tasks, key=attrgetter("name")), *corpora]


def task_names() -> list[str]:
    """The names that `load_task` knows, sorted."""
    return sorted([*CATALOGUE, *GENERATED])


def corpus_names() -> list[str]:
    """The names that `load_corpus` knows, sorted."""
    return sorted(CORPORA)


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
    check_template_options(style, template_options)
    if name not in task_names() and not _is_path(name):
        raise _unknown("task", str(name), task_names(), "a .jsonl, .parquet or .csv file")
    if style == "harness":
        _require_harness(str(name))
    if name in GENERATED:
        return GENERATED[str(name)][0](seed, style, tokenizer, template_options)
    if name in CATALOGUE:
        folder = None if data_dir is None else Path(data_dir)
        return load_declared(CATALOGUE[str(name)], folder, seed, style, tokenizer, template_options)
    return load_own(Path(name), seed, style, tokenizer, template_options)


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
    if name in CORPORA:
        return CORPORA[str(name)](None if data_dir is None else Path(data_dir), seed)
    if not _is_path(name):
        raise _unknown("corpus", str(name), corpus_names(), "a UTF-8 text file")
    return text_file(Path(name), seed)


def load_calibration(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    style: PromptStyle = "alpaca",
    tokenizer: Any = None,
    template_options: Mapping[str, Any] | None = None,
) -> Corpus | SelfText:
    """What to calibrate on: a corpus, a task's training rows as text, or `self`.

    The arguments are those of `load_task`, and `self` is text that the model samples from itself.

    Raises:
        InputError: the name is unknown, or what it names cannot be read.
    """
    if name == SELF:
        return SelfText()
    known = [SELF, *corpus_names(), *task_names()]
    if name not in known and not _is_path(name):
        raise _unknown("calibration text", str(name), known, "a file of text or of examples")
    (source,) = load_sources(
        [name],
        data_dir=data_dir,
        seed=seed,
        style=style,
        tokenizer=tokenizer,
        template_options=template_options,
    )
    return training_text(source) if isinstance(source, Task) else source


def load_sources(
    names: Sequence[str | Path],
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    style: PromptStyle = "alpaca",
    tokenizer: Any = None,
    template_options: Mapping[str, Any] | None = None,
) -> list[Task | Corpus]:
    """Tasks and corpora together, in the order of their names, as evaluation takes them.

    A path is a task where it is a folder or a file of examples, and otherwise text.
    The arguments are those of `load_task`.

    Raises:
        InputError: a name is unknown, or what it names cannot be read.
    """
    check_template_options(style, template_options)
    known = [*task_names(), *corpus_names()]
    sources: list[Task | Corpus] = []
    for name in names:
        path = Path(name)
        if name not in known and not _is_path(name):
            raise _unknown("task or corpus", str(name), known, "a file of examples or of text")
        if name in CORPORA or (name not in known and not _is_task(path)):
            sources.append(load_corpus(name, data_dir=data_dir, seed=seed))
        else:
            task = load_task(
                name,
                data_dir=data_dir,
                seed=seed,
                style=style,
                tokenizer=tokenizer,
                template_options=template_options,
            )
            sources.append(task)
    return sources


def is_task(name: str) -> bool:
    """Whether `load_sources` takes a name or path as a task, and not as a corpus; nothing is read.

    An unknown name counts as one: loading it says what is wrong.
    """
    if name in task_names() or name in CORPORA:
        return name not in CORPORA
    return not _is_path(name) or _is_task(Path(name))


def has_style(name: str, style: PromptStyle) -> bool:
    """Whether a style changes the prompts of a task; those of texts to go on with are as they are.

    Args:
        name: of a task, or the path of a user's file, whose prompts only `chat` changes.
        style: which is asked for.
    """
    if name in CATALOGUE:
        return bool(CATALOGUE[name].instruction) or style == "harness"
    if name in GENERATED or _is_path(name):
        return name == "facts" or style in ("chat", "harness")
    return name != SELF


def _require_harness(name: str) -> None:
    """Refuse the style `harness` for a task that has no such form."""
    if name not in IN_HARNESS:
        raise InputError(
            f"task {name} cannot be asked in the style harness, in the words of "
            f"lm-evaluation-harness; those that can are {', '.join(IN_HARNESS)}"
        )


def _is_task(path: Path) -> bool:
    if path.is_dir() or path.suffix.lower() not in READERS:
        return path.is_dir()
    first = next((row for _, row in read_rows(path, [TEXT, *COLUMNS])), {})
    return TEXT not in first or "prompt" in first


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
