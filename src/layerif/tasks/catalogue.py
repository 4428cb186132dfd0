"""The declared tasks: public data sets, and how a row of each becomes an example.

A task is an entry in `CATALOGUE`; nothing else has to change for a new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter, ascii_uppercase
from typing import Any

from layerif.errors import InputError
from layerif.tasks.base import Example, Split, Task
from layerif.tasks.sources import Row, from_folder, from_hub
from layerif.tasks.splits import carve, count_and_hash, disjoint

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ANSWER_BY_TEXT = "Answer: {text}."
ANSWER_BY_LETTER = "Answer: The answer is {letter}."
# The share of train that stands in for a validation split of its own.
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class TaskSpec:
    """A multiple-choice task over a public data set.

    Attributes:
        name: the task's name on the command line.
        repo: the data set on the hub.
        config: its configuration there; None where there is only one.
        instruction: a template; `{column}` is a row's value, `{options}` the lettered options.
        label: the column of the right answer: an index, or the label or letter of an option.
        answers: the options that are the same in every row, in the order of the labels; empty
            where each row brings its own.
        options: the column of a row's own options: a list of texts, or lists `label` and `text`.
        candidate: a template of a candidate completion, with `{text}` and `{letter}`.
        folder: the data set's folder in a data directory; the name if empty.
        folder_columns: what columns are called in that folder, where it differs from the hub.
        train, validation, test: the hub's split that serves as each of ours. Where validation
            names the same one as train, a seeded tenth of its prompts is set apart for it.
    """

    name: str
    repo: str
    config: str | None
    instruction: str
    label: str
    answers: tuple[str, ...] = ()
    options: str = ""
    candidate: str = ANSWER_BY_LETTER
    folder: str = ""
    folder_columns: Mapping[str, str] = field(default_factory=dict)
    train: str = "train"
    validation: str = "validation"
    test: str = "test"

    @property
    def columns(self) -> list[str]:
        """The columns read, as the hub names them."""
        fields = [name for _, name, _, _ in Formatter().parse(self.instruction) if name]
        named = [name for name in fields if name != "options"] + [self.options, self.label]
        return list(dict.fromkeys(name for name in named if name))

    def example(self, row: Row) -> Example | None:
        """The example that a raw row becomes; None for a row without a usable label."""
        labels, texts = _options(row[self.options]) if self.options else ((), self.answers)
        answer = _index(row[self.label], labels or tuple(ascii_uppercase[: len(texts)]))
        if answer is None:
            return None
        options = "\n".join(map("{}. {}".format, ascii_uppercase, texts))
        instruction = self.instruction.format_map({**row, "options": options})
        choices = tuple(
            self.candidate.format(letter=letter, text=text)
            for letter, text in zip(ascii_uppercase, texts, strict=False)
        )
        prompt = ALPACA.format(instruction=instruction)
        return Example(prompt, choices[answer], choices, answer)


def _options(value: Any) -> tuple[Sequence[str], Sequence[str]]:
    """Labels and texts of a row's options; a plain list of texts has no labels."""
    if isinstance(value, Mapping):
        return value["label"], value["text"]
    return (), value


def _index(label: Any, labels: Sequence[str]) -> int | None:
    """The index that a label stands for, among as many options as `labels`; None for no label."""
    if isinstance(label, str) and label and label in labels:
        return labels.index(label)
    try:
        index = int(label)
    except (TypeError, ValueError):
        return None
    return index if 0 <= index < len(labels) else None


def load_declared(spec: TaskSpec, data_dir: Path | None, seed: int) -> Task:
    """The task of an entry, from the hub or from `data_dir/folder/split.parquet`.

    Raises:
        InputError: a split cannot be read, or has a row without a label.
    """
    folder = spec.folder or spec.name
    named: dict[Split, str] = {"train": spec.train, "validation": spec.validation}
    named["test"] = spec.test
    read: dict[str, list[Example]] = {}
    for source in dict.fromkeys(named.values()):
        if data_dir is None:
            rows = from_hub(spec.repo, spec.config, source, spec.columns)
        else:
            local = [spec.folder_columns.get(column, column) for column in spec.columns]
            found = from_folder(data_dir, folder, source, local)
            rows = [dict(zip(spec.columns, row.values(), strict=True)) for row in found]
        read[source] = _examples(spec, source, rows)
    splits: dict[Split, Sequence[Example]] = {split: read[name] for split, name in named.items()}
    made: dict[Split, str] = {split: f"split {name!r}" for split, name in named.items()}
    if spec.validation == spec.train:
        splits.update(carve(read[spec.train], {"validation": VALIDATION_SHARE}, seed))
        made["validation"] = f"a tenth of the prompts of split {spec.train!r}, drawn by seed {seed}"
        made["train"] = f"the rest of split {spec.train!r}"
    splits, dropped = disjoint(splits)
    place = {"repo": spec.repo, "config": spec.config} if data_dir is None else {}
    origin = {
        "source": "hub" if data_dir is None else str(data_dir / folder),
        **place,
        "splits": made,
        "dropped": dropped,
        **count_and_hash(splits),
    }
    return Task(spec.name, splits, origin)


def _examples(spec: TaskSpec, source: str, rows: Sequence[Row]) -> list[Example]:
    examples = []
    for number, row in enumerate(rows, start=1):
        example = spec.example(row)
        if example is None:
            raise InputError(
                f"task {spec.name} needs labelled rows, but row {number} of split {source!r} has "
                f"{row[spec.label]!r} in column {spec.label!r}, which names none of its options"
            )
        examples.append(example)
    return examples


_SPECS = (
    TaskSpec(
        name="mrpc",
        repo="nyu-mll/glue",
        config="mrpc",
        instruction=(
            "Read two sentences from news articles and decide whether they mean the same.\n\n"
            "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n\n"
            'Reply "Answer: equivalent." if they do and "Answer: not equivalent." if they do not.'
        ),
        label="label",
        answers=("not equivalent", "equivalent"),
        candidate=ANSWER_BY_TEXT,
    ),
    TaskSpec(
        name="commonsense_qa",
        repo="tau/commonsense_qa",
        config=None,
        instruction=(
            "Use common sense to choose the best answer to the question.\n\n"
            "Question: {question}\n{options}\n\n"
            'Reply "Answer: The answer is" and the letter of your choice.'
        ),
        options="choices",
        label="answerKey",
        # The hub's test split has no labels, so its validation split is what we test on.
        validation="train",
        test="validation",
    ),
    TaskSpec(
        name="openbookqa",
        repo="allenai/openbookqa",
        config="main",
        instruction=(
            "Choose the option that answers the question, or completes the sentence, in line "
            "with elementary science.\n\n"
            "Question: {question_stem}\n{options}\n\n"
            'Reply "Answer: The answer is" and the letter of your choice.'
        ),
        options="choices",
        label="answerKey",
    ),
)
CATALOGUE: Mapping[str, TaskSpec] = {spec.name: spec for spec in _SPECS}
