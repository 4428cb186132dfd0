"""The facts task: fixed rows, balanced answers, and passages that hold what is asked."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from layerif.data import SPLITS, Example, Task, load_task
from layerif.data.facts import CANDIDATES, KINDS, NAMES, ROWS_PER_KIND, generate


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("facts", style="plain")


def parts(example: Example) -> tuple[list[str], str, list[str]]:
    """The sentences of the passage, the question, and the candidates without their frame."""
    found = re.fullmatch(r"Read.*\n\nPassage: (.*)\nQuestion: (.*\?)\n", example.prompt)
    assert found is not None
    texts = [choice.removeprefix("Answer: ").removesuffix(".") for choice in example.choices]
    return re.findall(r"[^.]+\.", found[1]), found[2], texts


def says(sentence: str, text: str) -> bool:
    return re.search(rf"\b{text}\b", sentence) is not None


def test_rows_are_the_same_everywhere(task: Task) -> None:
    assert task.origin["sha256"] == {
        "train": "dfd214f215bfb6a1ef99792a49acc289aebe3099a718b8ed6cbc3cbd13937656",
        "validation": "41d9b046ca062d2309afd5c3752278f5ad202271124e1a8a457ecd2a460e734c",
        "test": "a5b4a218e621b6b6e6f49f9c8fa9335059bd590d6d9635de4ddc3c3c5ace45d8",
    }


def test_seed(task: Task) -> None:
    other = load_task("facts", seed=1, style="plain")
    assert all(task.splits[split] != other.splits[split] for split in SPLITS)
    assert task == load_task("facts", style="plain")


def test_counts_and_distinct_prompts(task: Task) -> None:
    rows = {split: count * len(KINDS) for split, count in ROWS_PER_KIND.items()}
    assert {split: len(rows) for split, rows in task.splits.items()} == rows
    assert task.origin["rows"] == rows == {"train": 1920, "validation": 448, "test": 960}
    prompts = {e.prompt for rows in task.splits.values() for e in rows}
    assert len(prompts) == sum(rows.values())


def test_the_passage_decides(task: Task) -> None:
    """One sentence names both the person asked about and a candidate: the right one."""
    for example in (e for rows in task.splits.values() for e in rows):
        sentences, question, texts = parts(example)
        assert len(sentences) == 3
        (name,) = [name for name in NAMES if says(question, name)]
        assert len(set(texts)) == CANDIDATES
        told = [t for t in texts if any(says(s, t) and says(s, name) for s in sentences)]
        assert told == [texts[example.answer or 0]]


def test_half_of_the_rows_have_a_rival_and_places_are_even() -> None:
    for split, kinds in generate(0).items():
        for name, rows in kinds.items():
            assert len(rows) == ROWS_PER_KIND[split]
            assert set(Counter(e.answer for e in rows).values()) == {len(rows) // CANDIDATES}
            told = []
            for example in rows:
                passage = example.prompt.partition("\nQuestion")[0]
                told.append(sum(says(passage, choice[8:-1]) for choice in example.choices))
            assert Counter(told) == {1: len(rows) / 2, 2: len(rows) / 2}, (split, name)


def test_first_or_last_mention_gives_nothing_away(task: Task) -> None:
    """With a rival told, the right answer comes first in about half of the rows."""
    first = []
    for example in task.splits["train"]:
        sentences, _, texts = parts(example)
        passage = " ".join(sentences)
        told = sorted((passage.index(t), t) for t in texts if says(passage, t))
        if len(told) == 2:
            first.append(told[0][1] == texts[example.answer or 0])
    assert 0.45 < sum(first) / len(first) < 0.55


def test_splits_mix_the_kinds(task: Task) -> None:
    where = {
        e.prompt: name for part in generate(0).values() for name, rows in part.items() for e in rows
    }
    for rows in task.splits.values():
        assert {where[e.prompt.removesuffix("\n")] for e in rows[:100]} == set(KINDS)
