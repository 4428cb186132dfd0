"""The catalogue on the real sets, and on folders laid out like the hub."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerif.data import Task, listings, load_task
from layerif.data.catalogue import CATALOGUE
from layerif.data.declared import load_declared


@functools.cache
def loaded(name: str, data_dir: Path, seed: int = 0) -> Task:
    return load_task(name, data_dir=data_dir, seed=seed)


@pytest.fixture(scope="module", params=sorted(CATALOGUE))
def declared(request: pytest.FixtureRequest, data_dir: Path) -> Task:
    if not (data_dir / request.param).is_dir():
        pytest.skip(f"no {request.param} in {data_dir}")
    return loaded(request.param, data_dir)


# Train, validation and test in the data directory, less rows that repeat one of their own split
# or of another, and how many candidates rows have.
EXPECTED = {
    "mrpc": ((3668, 408, 1725), {2}),
    "cola": ((7665, 851, 1039), {2}),
    "rte": ((2239, 249, 277), {2}),
    "commonsense_qa": ((9741 - 974, 974, 1221), {5}),
    "openbookqa": ((4957 - 5, 500, 500), {4}),
    "scienceqa_text": ((1930, 214, 2224), {2, 3, 4}),
    "arc_easy": ((2024, 225, 2376), {3, 4, 5}),
    "arc_challenge": ((1006, 112, 1172), {3, 4, 5}),
    "boolq": ((981, 327, 1962), {2}),
    "hellaswag": ((3015, 1005, 6022), {4}),
    "winogrande": ((381, 127, 759), {2}),
}
# The share of the commonest answer, where answers are not balanced.
SKEWED = {"mrpc": 0.66, "cola": 0.69, "boolq": 0.63}


def test_real_sets(declared: Task) -> None:
    rows, candidates = EXPECTED[declared.name]
    assert tuple(len(rows) for rows in declared.splits.values()) == rows
    assert declared.origin["rows"] == {split: len(rows) for split, rows in declared.splits.items()}
    found = {len(e.candidates()) for rows in declared.splits.values() for e in rows}
    assert found == candidates
    (listed,) = [item for item in listings() if item.name == declared.name]
    low, _, high = listed.candidates.partition("-")
    assert int(low) <= min(found) <= max(found) <= int(high or low)


def test_no_two_splits_of_real_sets_share_a_prompt(declared: Task) -> None:
    keys = [{e.key for e in rows} for rows in declared.splits.values()]
    prompts = [
        {prompt for e in rows for prompt, _ in e.candidates()} for rows in declared.splits.values()
    ]
    for parts in (keys, prompts):
        for one, other in itertools.combinations(parts, 2):
            assert not one & other
    for rows in declared.splits.values():
        assert len({e.question for e in rows}) == len(rows)


def test_answers_of_real_sets_are_as_balanced_as_they_should_be(declared: Task) -> None:
    test = declared.splits["test"]
    shares = [n / len(test) for n in Counter(e.answer for e in test).values()]
    if declared.name in SKEWED:
        assert max(shares) == pytest.approx(SKEWED[declared.name], abs=0.01)
    elif declared.name == "scienceqa_text":
        # Most of its questions have two options, few have four.
        assert max(shares) < 0.45
    else:
        even = 1 / len(test[0].candidates())
        assert all(even - 0.06 < share < even + 0.06 for share in shares)


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
        "validation": "10% of the prompts of split 'train', drawn by seed 0",
        "test": "split 'validation'",
    }
    parts = [{*task.splits["train"], *task.splits["validation"]} for task in (one, other)]
    assert parts[0] == parts[1]


def test_twins_of_winogrande_stay_together(data_dir: Path) -> None:
    rows = loaded("winogrande", data_dir).splits["test"]
    pairs = Counter(e.key for e in rows)
    assert set(pairs.values()) == {1, 2}
    assert sum(count == 2 for count in pairs.values()) > 100
    assert all(e.prompt == e.contexts[e.answer or 0] and e.completion[0] == " " for e in rows)


# Rows as the hub has them, with a label that says nothing in the split that has none there.
HUB_ROWS: dict[str, dict[str, Any]] = {
    "boolq": {"question": "is {n} even", "answer": True, "passage": "It is."},
    "arc_easy": {
        "id": "MCAS_{n}",
        "question": "What is {n}?",
        "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    },
    "winogrande": {
        "sentence": "{n}: Ann beat Bob, so _ won.",
        "option1": "Ann",
        "option2": "Bob",
        "answer": "1",
    },
    "hellaswag": {
        "ind": 1,
        "activity_label": "Home",
        "ctx_a": "no",
        "ctx_b": "no",
        "ctx": "[header] How to do {n} [title] Start. [step] Go on [now].",
        "endings": ["[step] Stop.", "Run.  Hide.", "c", "d"],
        "source_id": "wikihow~{n}",
        "label": "1",
    },
    "scienceqa_text": {
        "image": None,
        "question": "What about {n}?",
        "choices": ["this", "that"],
        "answer": 1,
        "hint": "Think.",
    },
    "cola": {"sentence": "Sentence {n}.", "label": 1, "idx": 3},
}
UNLABELLED: dict[str, Any] = {
    "winogrande": {"answer": ""},
    "hellaswag": {"label": ""},
    "cola": {"label": -1},
}


def filled(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with its number in every text."""
    return {
        name: value.replace("{n}", str(number)) if isinstance(value, str) else value
        for name, value in row.items()
    }


@pytest.fixture
def from_hub_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a task from a folder as the hub has it, 20 rows in train and 5 in each other split."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def load(name: str, **more: dict[str, Any]) -> Task:
        spec, row = CATALOGUE[name], HUB_ROWS[name]
        folder = tmp_path / "hub" / name
        folder.mkdir(parents=True)
        lines = ["---", "configs:", f"- config_name: {spec.config or 'default'}", "  data_files:"]
        numbers = itertools.count()
        for split, count in (("train", 20), ("validation", 5), ("test", 5)):
            if (name, split) == ("boolq", "test"):
                continue
            rows = [filled(row, next(numbers)) for _ in range(count)]
            rows += [filled(row, next(numbers)) | extra for extra in more.values()]
            if split == "test":
                rows = [row | UNLABELLED.get(name, {}) for row in rows]
            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, folder / f"{split}-0.parquet")
            lines += [f"  - split: {split}", f"    path: {split}-*"]
        (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
        return load_declared(replace(spec, repo=str(folder))).hashed()

    return load


@pytest.mark.parametrize("name", ["boolq", "cola", "hellaswag", "winogrande"])
def test_hub_without_a_labelled_test_split(from_hub_layout: Any, name: str) -> None:
    task = from_hub_layout(name)
    assert task.origin["rows"] == {"train": 18, "validation": 2, "test": 5}
    assert task.origin["splits"]["test"] == "split 'validation'"
    assert (task.origin["source"], task.origin["config"]) == ("hub", CATALOGUE[name].config)


def test_arc_on_the_hub(from_hub_layout: Any) -> None:
    task = from_hub_layout("arc_easy")
    assert task.origin["rows"] == {"train": 20, "validation": 5, "test": 5}
    example = task.splits["test"][0]
    assert "Question: What is 25?\nA. a\nB. b\nC. c\n\n" in example.prompt
    assert (example.answer, example.completion) == (2, "Answer: The answer is C.")


def test_boolq_on_the_hub(from_hub_layout: Any) -> None:
    example = from_hub_layout("boolq").splits["test"][0]
    assert "Passage: It is.\nQuestion: is 20 even?\n" in example.prompt
    assert (example.choices, example.answer) == (("Answer: no.", "Answer: yes."), 1)


def test_winogrande_on_the_hub(from_hub_layout: Any) -> None:
    example = from_hub_layout("winogrande").splits["test"][0]
    contexts = ("20: Ann beat Bob, so Ann", "20: Ann beat Bob, so Bob")
    assert (example.contexts, example.completion, example.answer) == (contexts, " won.", 0)


def test_hellaswag_on_the_hub(from_hub_layout: Any) -> None:
    example = from_hub_layout("hellaswag").splits["test"][0]
    assert example.prompt == "Home: How to do 20. Start. Go on [now]."
    assert example.choices == (" Stop.", " Run. Hide.", " c", " d")
    assert example.answer == 1


def test_scienceqa_on_the_hub_leaves_out_pictures(from_hub_layout: Any) -> None:
    picture = {"image": {"bytes": b"\x89PNG", "path": "image.png"}}
    task = from_hub_layout("scienceqa_text", picture=picture, plain={"hint": ""})
    assert task.origin["rows"] == {"train": 21, "validation": 6, "test": 6}
    assert task.origin["rows_without"] == "image"
    first, *_, last = task.splits["test"]
    assert "Question: What about 29?\nContext: Think.\nA. this\nB. that\n" in first.prompt
    assert "?\nA. this" in last.prompt
    assert first.completion == "Answer: The answer is B."


def test_a_data_directory_may_be_a_plain_string(data_dir: Path) -> None:
    assert load_task("openbookqa", data_dir=str(data_dir)) == loaded("openbookqa", data_dir)
