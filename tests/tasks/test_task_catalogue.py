"""Declared tasks: what a row becomes, and the splits of the real sets."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest

from layerif.errors import InputError
from layerif.tasks import Task, load_task
from layerif.tasks import catalogue as catalogue_module
from layerif.tasks.catalogue import ALPACA, ANSWER_BY_TEXT, CATALOGUE, TaskSpec, load_declared

OPTIONS = {"label": ["A", "B", "C"], "text": ["ice", "wood", "{air}"]}
SPEC = TaskSpec(
    name="toy",
    repo="owner/toy",
    config=None,
    instruction="{stem}\n{options}",
    options="choices",
    label="key",
)


def toy_rows(*stems: str, key: Any = "B") -> list[dict[str, Any]]:
    return [{"stem": stem, "choices": OPTIONS, "key": key} for stem in stems]


def toy_splits(**rows: list[dict[str, Any]]) -> Any:
    """A stand-in for the hub that serves these rows."""

    def from_hub(repo: str, config: str | None, split: str, columns: list[str]) -> Any:
        assert (repo, columns) == ("owner/toy", ["stem", "choices", "key"])
        return rows[split]

    return from_hub


def test_lettered_options() -> None:
    example = SPEC.example(*toy_rows("What {floats}?"))
    assert example is not None
    instruction = "What {floats}?\nA. ice\nB. wood\nC. {air}"
    assert example.prompt == ALPACA.format(instruction=instruction)
    assert example.choices == tuple(f"Answer: The answer is {letter}." for letter in "ABC")
    assert example.completion == example.choices[1]


def test_fixed_answers() -> None:
    spec = CATALOGUE["mrpc"]
    row = {"sentence1": "One.", "sentence2": "Two.", "label": 0}
    example = spec.example(row)
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
    example = SPEC.example({"stem": "What?", "choices": choices, "key": label})
    assert (None if example is None else example.answer) == answer


@pytest.mark.parametrize("label", ["", -1, None])
def test_a_split_without_labels_is_named(monkeypatch: pytest.MonkeyPatch, label: Any) -> None:
    rows = {"train": toy_rows("a"), "validation": toy_rows("b"), "test": toy_rows("c", key=label)}
    monkeypatch.setattr(catalogue_module, "from_hub", toy_splits(**rows))
    with pytest.raises(InputError, match=r"toy needs labelled rows.* row 1 of split 'test'"):
        load_declared(SPEC, None, 0)


def test_splits_are_made_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    served = toy_splits(train=toy_rows(*"aabc"), validation=toy_rows(*"bd"), test=toy_rows(*"cd"))
    monkeypatch.setattr(catalogue_module, "from_hub", served)
    task = load_declared(SPEC, None, 0)
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
        repo="owner/yes_no",
        config=None,
        instruction="{passage} {question}",
        label="answer",
        answers=("no", "yes"),
        candidate=ANSWER_BY_TEXT,
        folder="local",
        folder_columns={"answer": "label"},
    )
    (tmp_path / "local").mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"passage": "Snow.", "label": 1, "question": f"{split}?", "idx": 7}]
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, tmp_path / "local" / f"{split}.parquet")
    example = load_declared(spec, tmp_path, 0).splits["test"][0]
    assert (example.prompt, example.completion) == (
        ALPACA.format(instruction="Snow. test?"),
        "Answer: yes.",
    )


@functools.cache
def loaded(name: str, data_dir: Path, seed: int = 0) -> Task:
    return load_task(name, data_dir=data_dir, seed=seed)


@pytest.fixture(scope="module", params=sorted(CATALOGUE))
def declared(request: pytest.FixtureRequest, data_dir: Path) -> Task:
    if not (data_dir / request.param).is_dir():
        pytest.skip(f"no {request.param} in {data_dir}")
    return loaded(request.param, data_dir)


# What the sets have, less the five questions that train of openbookqa asks twice.
ROWS = {
    "mrpc": (3668, 408, 1725),
    "commonsense_qa": (9741 - 974, 974, 1221),
    "openbookqa": (4957 - 5, 500, 500),
}
CHOICES = {"mrpc": 2, "commonsense_qa": 5, "openbookqa": 4}


def test_real_sets(declared: Task) -> None:
    assert tuple(len(rows) for rows in declared.splits.values()) == ROWS[declared.name]
    assert declared.origin["rows"] == {split: len(rows) for split, rows in declared.splits.items()}
    prompts = [{e.prompt for e in rows} for rows in declared.splits.values()]
    for one, other in itertools.combinations(prompts, 2):
        assert not one & other
    for rows, distinct in zip(declared.splits.values(), prompts, strict=True):
        assert len(distinct) == len(rows)
        assert {len(e.choices) for e in rows} == {CHOICES[declared.name]}
        assert {e.answer for e in rows} == set(range(CHOICES[declared.name]))


def test_test_rows_are_in_the_order_of_the_set(data_dir: Path) -> None:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(data_dir / "mrpc" / "test.parquet").to_pylist()
    test = loaded("mrpc", data_dir).splits["test"]
    assert [e.answer for e in test] == [row["label"] for row in rows]
    assert all(
        row["sentence1"] in e.prompt and row["sentence2"] in e.prompt
        for e, row in zip(test, rows, strict=True)
    )


def test_commonsense_qa_validation_comes_from_train(data_dir: Path) -> None:
    one, other = loaded("commonsense_qa", data_dir, 0), loaded("commonsense_qa", data_dir, 1)
    assert one.splits["test"] == other.splits["test"]
    assert one.splits["validation"] != other.splits["validation"]
    assert one.origin["splits"] == {
        "train": "the rest of split 'train'",
        "validation": "a tenth of the prompts of split 'train', drawn by seed 0",
        "test": "split 'validation'",
    }
    parts = [{*task.splits["train"], *task.splits["validation"]} for task in (one, other)]
    assert parts[0] == parts[1]
