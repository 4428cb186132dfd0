"""How declared tasks are read: what a row becomes, and how splits are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerif.data import declared as declared_module
from layerif.data.catalogue import CATALOGUE
from layerif.data.declared import ANSWER_BY_TEXT, Layout, TaskSpec, load_declared
from layerif.data.styles import TEMPLATES, Request
from layerif.errors import InputError

OPTIONS = {"label": ["A", "B", "C"], "text": ["ice", "wood", "{air}"]}
render = Request().render
SPEC = TaskSpec(
    name="toy",
    asks="what floats",
    repo="owner/toy",
    instruction="{stem}\n{options}",
    options="choices",
    label="key",
)


def toy_rows(*stems: str, key: Any = "B") -> list[dict[str, Any]]:
    return [{"stem": stem, "choices": OPTIONS, "key": key} for stem in stems]


def toy_splits(**rows: list[dict[str, Any]]) -> Any:
    """A stand-in for the hub that serves these rows."""

    def from_hub(repo: str, config: Any, split: str, columns: list[str], empty: Any) -> Any:
        assert (repo, columns) == ("owner/toy", ["stem", "choices", "key"])
        return rows[split]

    return from_hub


def test_lettered_options() -> None:
    example = SPEC.example(*toy_rows("What {floats}?"), render)
    assert example is not None
    instruction = "What {floats}?\nA. ice\nB. wood\nC. {air}"
    assert example.prompt == TEMPLATES["alpaca"].format(instruction=instruction)
    assert example.choices == tuple(f"Answer: The answer is {letter}." for letter in "ABC")
    assert example.completion == example.choices[1]


def test_fixed_answers() -> None:
    spec = CATALOGUE["mrpc"]
    row = {"sentence1": "One.", "sentence2": "Two.", "label": 0}
    example = spec.example(row, render)
    assert example is not None
    assert example.choices == ("Answer: not equivalent.", "Answer: equivalent.")
    assert example.completion == "Answer: not equivalent."
    assert "Sentence 1: One.\nSentence 2: Two.\n" in example.prompt
    assert example.prompt.startswith("Below is an instruction that describes a task.")
    assert example.prompt.endswith("\n\n### Response:\n")


@pytest.mark.parametrize(
    ("choices", "label", "answer"),
    [
        (OPTIONS, "C", 2),
        ({**OPTIONS, "label": ["1", "2", "3"]}, "1", 0),
        (OPTIONS["text"], "C", 2),
        (OPTIONS["text"], 1, 1),
        (OPTIONS["text"], "1", 1),
        (OPTIONS["text"], True, 1),
        (OPTIONS["text"], "AB", None),
        (OPTIONS["text"], "", None),
        (OPTIONS["text"], 3, None),
        (OPTIONS, -1, None),
        (OPTIONS, None, None),
    ],
)
def test_forms_of_labels(choices: Any, label: Any, answer: int | None) -> None:
    example = SPEC.example({"stem": "What?", "choices": choices, "key": label}, render)
    assert (None if example is None else example.answer) == answer


@pytest.mark.parametrize("label", ["", -1, None])
def test_a_split_without_labels_is_named(monkeypatch: pytest.MonkeyPatch, label: Any) -> None:
    rows = {"train": toy_rows("a"), "validation": toy_rows("b"), "test": toy_rows("c", key=label)}
    monkeypatch.setattr(declared_module, "from_hub", toy_splits(**rows))
    with pytest.raises(InputError, match=r"toy .*row 1 .*'test'"):
        load_declared(SPEC)


def test_splits_are_made_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    served = toy_splits(train=toy_rows(*"aabc"), validation=toy_rows(*"bd"), test=toy_rows(*"cd"))
    monkeypatch.setattr(declared_module, "from_hub", served)
    task = load_declared(SPEC)
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 1,
        "validation": 1,
        "test": 2,
    }
    assert task.origin["dropped"] == {
        "train": {"repeated": 1, "prompt in validation": 1, "prompt in test": 1},
        "validation": {"prompt in test": 1},
        "test": {},
    }
    assert task.origin["source"] == "hub"
    assert task.origin["repo"] == "owner/toy"


def test_other_column_names_in_a_folder(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    spec = TaskSpec(
        name="yes_no",
        asks="yes or no",
        repo="owner/yes_no",
        instruction="{passage} {question}",
        label="answer",
        answers=("no", "yes"),
        candidate=ANSWER_BY_TEXT,
        folder=Layout(renamed={"answer": "label"}),
    )
    (tmp_path / "yes_no").mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"passage": "Snow.", "label": 1, "question": f"{split}?", "idx": 7}]
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, tmp_path / "yes_no" / f"{split}.parquet")
    example = load_declared(spec, Request(tmp_path)).splits["test"][0]
    assert (example.prompt, example.completion) == (
        TEMPLATES["alpaca"].format(instruction="Snow. test?"),
        "Answer: yes.",
    )


def test_contexts() -> None:
    row = {"context_options": ["Ann", "Bob"], "continuation": "left.", "label": 1}
    example = CATALOGUE["winogrande"].example(row, render)
    assert example is not None
    assert example.candidates() == (("Ann", " left."), ("Bob", " left."))
    assert (example.prompt, example.completion, example.answer) == ("Bob", " left.", 1)


def test_splits_that_share_one_divide_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(SPEC, hub=Layout(train="dev", validation="dev", test="dev"))
    rows = [*toy_rows(*map(str, range(100))), *toy_rows(*map(str, range(10)), key="C")]
    monkeypatch.setattr(declared_module, "from_hub", toy_splits(dev=rows))
    one, other = load_declared(spec), load_declared(spec, Request(seed=1))
    assert one.hashed().origin["rows"] == {"train": 30, "validation": 10, "test": 60}
    assert one.origin["splits"] == {
        "train": "the rest of split 'dev'",
        "validation": "10% of the prompts of split 'dev', drawn by seed 0",
        "test": "60% of the prompts of split 'dev', drawn by seed 0",
    }
    assert sum(n for reasons in one.origin["dropped"].values() for n in reasons.values()) == 10
    assert one.splits["test"] != other.splits["test"]
    prompts = [{e.prompt for rows in task.splits.values() for e in rows} for task in (one, other)]
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) == 100
