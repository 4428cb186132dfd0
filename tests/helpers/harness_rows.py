"""Rows of the tasks that lm-evaluation-harness and our own catalogue share, in both layouts.

Each task has rows as the hub gives them to lm-eval, and the split that it tests on; the folder's
form of the same rows is made from them here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Row = dict[str, Any]

_ARC: list[Row] = [
    {
        "question": "What melts ice?",
        "choices": {"text": ["heat", "cold air", "a b"], "label": ["1", "2", "3"]},
        "answerKey": "1",
    },
    {
        "question": "Which one flies?",
        "choices": {"text": ["a fish", "a bird.", "stone", "ça"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    {
        "question": "42",
        "choices": {"text": ["1", "2", "3", "4"], "label": ["A", "B", "C", "D"]},
        "answerKey": "D",
    },
]
HUB_ROWS: dict[str, list[Row]] = {
    "arc_easy": _ARC,
    "arc_challenge": _ARC[::-1],
    "boolq": [
        {"passage": "Ice -- Ice melts.", "question": "does ice melt", "label": 1},
        {"passage": "Snow -- Snow is white.", "question": "is snow red", "label": 0},
    ],
    "rte": [
        {"sentence1": "Ann has died.", "sentence2": "Ann lives.", "label": 1},
        {"sentence1": "Bob ran home.", "sentence2": "Bob ran.", "label": 0},
    ],
    "hellaswag": [
        {  # ActivityNet: a fragment of a sentence that the endings go on with
            "activity_label": "Roofing",
            "ctx_a": "A man sits. He is up.",
            "ctx_b": "the Man",
            "endings": ["is here.", "looks at [a] roof.", "sings", "runs."],
            "label": "3",
        },
        {  # WikiHow: marks of its parts
            "activity_label": "Home",
            "ctx_a": "[header] How to sit [title] Sit. [step] Go on [now].",
            "ctx_b": "",
            "endings": ["Sit down. [title] Stay.", "Run.", "Stand [step] up", "Ask Dr. Who."],
            "label": "0",
        },
    ],
    "winogrande": [
        {"sentence": "Ann beat Bob, so _ won.", "option1": "Ann", "option2": "Bob", "answer": "1"},
        {"sentence": "Ann met Jo as _ was in.", "option1": "Ann", "option2": "Jo", "answer": "2"},
    ],
    "openbookqa": [
        {
            "question_stem": "Fog is most likely around:",
            "choices": {"text": ["a marsh", "a tundra", "sand", "oil"], "label": list("ABCD")},
            "answerKey": "A",
        },
        {  # blanks at the end, which are scored with the answer
            "question_stem": "The sun is a  ",
            "choices": {"text": ["star", "moon", "dog", "big star"], "label": list("ABCD")},
            "answerKey": "D",
        },
    ],
}
NAMES = sorted(HUB_ROWS)
TESTED = dict.fromkeys(NAMES, "validation") | dict.fromkeys(
    ("arc_easy", "arc_challenge", "openbookqa"), "test"
)


def _arc(row: Row) -> Row:
    choices = row["choices"]
    return {
        "question": row["question"],
        "choices": choices["text"],
        "label": choices["label"].index(row["answerKey"]),
    }


def _hellaswag(row: Row) -> Row:
    def without_marks(text: str) -> str:
        text = text.replace(" [title]", ". ")
        for mark in ("[header]", "[step]"):
            text = text.replace(mark, "")
        return text.replace("  ", " ").strip()

    context = f"{row['ctx_a']} {row['ctx_b'].lower()}"
    return {
        "query": without_marks(f"{row['activity_label']}: {context}"),
        "endings": [without_marks(text) for text in row["endings"]],
        "label": int(row["label"]),
    }


def _winogrande(row: Row) -> Row:
    before, after = row["sentence"].split("_")
    return {
        "context_options": [before + row["option1"], before + row["option2"]],
        "continuation": after.strip(),
        "label": int(row["answer"]) - 1,
    }


_TO_FOLDER: dict[str, Callable[[Row], Row]] = {
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
}


def folder_rows(name: str) -> list[Row]:
    """The rows of a task as a folder has them."""
    return [_TO_FOLDER.get(name, dict)(row) for row in HUB_ROWS[name]]


def write_folder(data_dir: Path, name: str, *, train: bool = True) -> None:
    """The task in a data directory: its rows in the split that is tested, others in train."""
    folder = data_dir / name
    folder.mkdir(parents=True)
    _write(folder / f"{TESTED[name]}.parquet", folder_rows(name))
    if train:
        _write(folder / "train.parquet", [_reworded(row) for row in folder_rows(name) * 3])
    for split in {"validation", "test"} - {TESTED[name]}:
        _write(folder / f"{split}.parquet", [_reworded(row) for row in folder_rows(name)])


def _write(path: Path, rows: list[Row]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _reworded(row: Row) -> Row:
    asked = {"question", "sentence1", "query", "question_stem", "continuation"}
    return {key: f"More {value}" if key in asked else value for key, value in row.items()}
