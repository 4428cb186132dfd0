"""How a declared task is read: a row becomes an example, a data set's splits become ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from string import Formatter, ascii_uppercase
from typing import Any

from layerif.data.base import SPLITS, Example, NamedTask, Split, Task
from layerif.data.sources import Row, from_folder, from_hub
from layerif.data.splits import carve, disjoint
from layerif.data.styles import Render, Request
from layerif.errors import InputError

ANSWER_BY_TEXT = "Answer: {text}."
ANSWER_BY_LETTER = "Answer: The answer is {letter}."
# The share of the prompts of a split that goes to each of ours which divide it; train has the rest.
SHARES: dict[Split, float] = {"validation": 0.1, "test": 0.6}
DEFAULT_REQUEST = Request()


@dataclass(frozen=True)
class Layout:
    """How a data set lies in one place: on the hub, or in a data directory.

    Attributes:
        train, validation, test: the split there that serves as each of ours. Those that name the
            same one, with train among them, divide its prompts by `SHARES`.
        renamed: what columns of the specification are called there, where it differs.
        columns: the columns that `row` takes, where a row has another form there.
        row: makes the columns of the specification from those.
        empty: a column that must be empty; rows where it is not are no part of the task.
    """

    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    renamed: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    row: Callable[[Row], Row] | None = None
    empty: str | None = None

    def named(self, split: Split) -> str:
        """The split there that serves as this one of ours."""
        there: str = getattr(self, split)
        return there

    def read(self, columns: Sequence[str], fetch: Callable[[list[str]], list[Row]]) -> list[Row]:
        """Rows with these columns, from `fetch`, which takes the names of columns there."""
        if self.row is not None:
            return [self.row(row) for row in fetch(list(self.columns))]
        rows = fetch([self.renamed.get(column, column) for column in columns])
        return [dict(zip(columns, row.values(), strict=True)) for row in rows]


@dataclass(frozen=True)
class TaskSpec:
    """A multiple-choice task over a public data set.

    A row is an `instruction` with answers to choose from, a `prompt` with endings to choose from,
    or a completion with `contexts` to choose from.

    Attributes:
        name: the task's name on the command line, and of its folder in a data directory.
        asks: what it asks, in a few words.
        repo: the data set on the hub.
        config: its configuration there; None where there is only one.
        label: the column of the right answer: an index, or the label or letter of an option.
        instruction: a template; `{column}` is a row's value, `{options}` the lettered options.
        prompt: the same, of a task that has no instruction.
        answers: the options that are the same in every row, in the order of the labels; empty
            where each row brings its own.
        options: the column of a row's own options: a list of texts, or lists `label` and `text`.
        count: how many options the rows bring.
        candidate: a template of a candidate completion, with `{text}` and `{letter}`.
        contexts: the column of a list of prompts, of which the right one is to be found.
        continuation: the column of the text that follows each of them.
        hub, folder: how the data set lies on the hub and in a data directory.
        harness: the fields that have other values in the style `harness`, which asks as
            lm-evaluation-harness does (its version 0.4); None where the task has no such form.
        harness_version: lm-evaluation-harness's own version of the task.
    """

    name: str
    asks: str
    repo: str
    label: str
    config: str | None = None
    instruction: str = ""
    prompt: str = ""
    answers: tuple[str, ...] = ()
    options: str = ""
    count: str = ""
    candidate: str = ANSWER_BY_LETTER
    contexts: str = ""
    continuation: str = ""
    hub: Layout = field(default_factory=Layout)
    folder: Layout = field(default_factory=Layout)
    harness: Mapping[str, Any] | None = None
    harness_version: float = 1.0

    @property
    def in_harness(self) -> TaskSpec:
        """The task as lm-evaluation-harness asks it, if it has such a form."""
        return replace(self, **(self.harness or {}))

    def layout(self, data_dir: Path | None) -> Layout:
        """How the data set lies in a data directory, or on the hub without one."""
        return self.hub if data_dir is None else self.folder

    def named(self) -> NamedTask:
        """The task as an entry of the registry."""
        return NamedTask(
            partial(load_declared, self),
            self.asks,
            f"{self.repo} ({self.config})" if self.config else self.repo,
            str(len(self.answers)) if self.answers else self.count,
            continues=not self.instruction,
            in_harness=self.harness is not None,
        )

    @property
    def columns(self) -> list[str]:
        """The columns of a row."""
        fields = [name for _, name, _, _ in Formatter().parse(self.instruction + self.prompt)]
        named = [name for name in fields if name != "options"]
        named += [self.options, self.contexts, self.continuation, self.label]
        return list(dict.fromkeys(name for name in named if name))

    def example(self, row: Row, render: Render) -> Example | None:
        """The example that a row becomes; None for a row without a usable label."""
        if self.contexts:
            contexts = tuple(row[self.contexts])
            answer = _index(row[self.label], tuple(ascii_uppercase[: len(contexts)]))
            if answer is None:
                return None
            completion = self.candidate.format(text=row[self.continuation])
            return Example(contexts[answer], completion, answer=answer, contexts=contexts)
        # A row's options are lists `label` and `text`, or a plain list of texts.
        options = row[self.options] if self.options else self.answers
        lists = options if isinstance(options, Mapping) else {"label": (), "text": options}
        labels, texts = lists["label"], lists["text"]
        answer = _index(row[self.label], labels or tuple(ascii_uppercase[: len(texts)]))
        if answer is None:
            return None
        values = {**row, "options": "\n".join(map("{}. {}".format, ascii_uppercase, texts))}
        choices = tuple(
            self.candidate.format(letter=letter, text=text)
            for letter, text in zip(ascii_uppercase, texts, strict=False)
        )
        prompt = self.prompt.format_map(values)
        if self.instruction:
            prompt = render(self.instruction.format_map(values))
        return Example(prompt, choices[answer], choices, answer)


def _index(label: Any, labels: Sequence[str]) -> int | None:
    """The index that a label stands for, among as many options as `labels`; None for no label."""
    if isinstance(label, str) and label and label in labels:
        return labels.index(label)
    try:
        index = int(label)
    except (TypeError, ValueError):
        return None
    return index if 0 <= index < len(labels) else None


def load_declared(spec: TaskSpec, request: Request = DEFAULT_REQUEST) -> Task:
    """The task of an entry, from the hub or from `data_dir/name/split.parquet`.

    Raises:
        InputError: a split cannot be read, or has a row without a label; or the style cannot be
            given to its prompts.
    """
    render: Render = str
    styled: dict[str, Any] = {}
    in_harness = request.style == "harness" and spec.harness is not None
    if in_harness:
        spec, styled = spec.in_harness, request.styled
    elif spec.instruction:
        render, styled = request.render, request.styled
    folder = request.folder
    if folder is None:
        origin: dict[str, Any] = {"source": "hub", "repo": spec.repo, "config": spec.config}
    else:
        origin = {"source": str(folder / spec.name)}
    layout = spec.layout(folder)
    if layout.empty is not None:
        origin["rows_without"] = layout.empty
    # Our splits from those of the data set, and in words how each was made.
    splits: dict[Split, list[Example]] = {}
    made: dict[Split, str] = dict.fromkeys(SPLITS, "")
    for source in dict.fromkeys(map(layout.named, SPLITS)):
        examples = fetch_examples(spec, folder, source, render)
        if in_harness:
            examples = list(map(_blank_scored, examples))
        ours = [split for split in SPLITS if layout.named(split) == source]
        if len(ours) == 1:
            splits[ours[0]], made[ours[0]] = examples, f"split {source!r}"
            continue
        shares = {split: share for split, share in SHARES.items() if split in ours}
        splits |= carve(examples, shares, request.seed)
        made["train"] = f"the rest of split {source!r}"
        for split, share in shares.items():
            by_seed = f"drawn by seed {request.seed}"
            made[split] = f"{share:.0%} of the prompts of split {source!r}, {by_seed}"
    kept, dropped = disjoint(splits)
    origin |= {**styled, "splits": made, "dropped": dropped}
    return Task(spec.name, kept, origin, continues=not spec.instruction)


def tested_order(
    spec: TaskSpec, data_dir: Path | None, samples: int, seed: int
) -> tuple[list[int], int]:
    """The rows of the data set's split that a task in the style `harness` is tested on.

    Returns:
        Of `samples` test rows drawn by `seed` (of all, where there are fewer) the numbers in that
        split, in the order of the draw; and how many rows it has.

    Raises:
        InputError: as `load_declared`.
    """
    task = load_declared(spec, Request(data_dir, style="harness"))
    drawn = task.sample("test", min(samples, len(task.splits["test"])), seed)
    asked = spec.in_harness
    rows = fetch_examples(asked, data_dir, asked.layout(data_dir).test)
    # A row that repeats another was left out: the first of them is the one that is drawn.
    place: dict[Example, int] = {}
    for number, example in enumerate(rows):
        place.setdefault(_blank_scored(example), number)
    return [place[example] for example in drawn], len(rows)


def fetch_examples(
    spec: TaskSpec, data_dir: Path | None, source: str, render: Render = str
) -> list[Example]:
    """The examples of one of the data set's own splits, in its order.

    Raises:
        InputError: as `load_declared`.
    """
    layout = spec.layout(data_dir)

    def rows(columns: list[str]) -> list[Row]:
        if data_dir is None:
            return from_hub(spec.repo, spec.config, source, columns, empty=layout.empty)
        return from_folder(data_dir, spec.name, source, columns)

    examples = []
    for number, row in enumerate(layout.read(spec.columns, rows), start=1):
        example = spec.example(row, render)
        if example is None:
            raise InputError(
                f"task {spec.name} needs labelled rows, but row {number} of split {source!r} has "
                f"{row[spec.label]!r} in column {spec.label!r}, which names none of its options"
            )
        examples.append(example)
    return examples


def _blank_scored(example: Example) -> Example:
    """Blanks at the end of the prompt go to the completions, as lm-evaluation-harness has it."""
    prompt = example.prompt.rstrip()
    blanks = example.prompt[len(prompt) :]
    if not blanks or example.contexts:
        return example
    choices = tuple(blanks + choice for choice in example.choices)
    return replace(example, prompt=prompt, completion=blanks + example.completion, choices=choices)
