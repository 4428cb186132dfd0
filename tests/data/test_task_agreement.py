"""The agreement task: fixed rows, balanced answers, and choices that differ in one word."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from layerif.data import SPLITS, Example, Task, load_task
from layerif.data.agreement import ROWS_PER_CONSTRUCTION, generate

PLURAL = re.compile(
    "are|were|have|do|seem|appear|look|need|belong|attract|live|know|want|enjoy|play|speak|work|"
    "take|stand|lie|sit|themselves|keys|labels|letters|photographs|notes|reports|books|recipes|"
    "posters|maps|drawings|covers"
)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("agreement")


def differing_word(example: Example) -> tuple[str, str]:
    """The right and the wrong form; the choices must be alike but for that word."""
    assert example.answer is not None
    right, wrong = example.choices[example.answer], example.choices[1 - example.answer]
    pairs = zip(right.split(" "), wrong.split(" "), strict=True)
    (pair,) = [(a, b) for a, b in pairs if a != b]
    return pair


def test_rows_are_the_same_everywhere(task: Task) -> None:
    assert task.origin["sha256"] == {
        "train": "b1d4d8096891d7a3e9105e855fbdb575760ba86a43ddc1c6a8602513ee355b9c",
        "validation": "80f919e30c9b1e2f9d119a7f31296ee8f0cb6a03fd6055d1dc6a5499d307cb29",
        "test": "04fd363bff0bcdce939f2de0c977d1da604a4f4e4a8518799ce8487868761870",
    }


def test_seed() -> None:
    one, other = load_task("agreement", seed=1), load_task("agreement", seed=2)
    assert one.splits == load_task("agreement", seed=1).splits
    assert all(one.splits[split] != other.splits[split] for split in SPLITS)


def test_counts_and_distinct_prompts(task: Task) -> None:
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 2000,
        "validation": 520,
        "test": 1000,
    }
    prompts = {e.prompt for rows in task.splits.values() for e in rows}
    assert len(prompts) == 3520


def test_form_of_every_row(task: Task) -> None:
    for rows in task.splits.values():
        for example in rows:
            assert re.fullmatch(r"[A-Z][A-Za-z ,-]*[a-z,]", example.prompt)
            assert "  " not in example.prompt
            assert len(example.choices) == 2
            for choice in example.choices:
                assert re.fullmatch(r" [a-z][A-Za-z ,-]*[a-z]\.", choice)
                assert "  " not in choice
                assert 5 <= len(choice.split()) <= 13
            # The critical word comes first, so that the prompt ends right before it.
            right, wrong = differing_word(example)
            assert example.completion.split()[0] == right != wrong


def test_a_liking_for_one_number_is_worth_nothing() -> None:
    for split, constructions in generate(0).items():
        for name, rows in constructions.items():
            assert len(rows) == ROWS_PER_CONSTRUCTION[split]
            plural = Counter(bool(PLURAL.fullmatch(differing_word(e)[0])) for e in rows)
            assert plural[True] == plural[False], (split, name)


def test_neither_is_a_liking_for_one_place(task: Task) -> None:
    for rows in task.splits.values():
        places = Counter(e.answer for e in rows)
        assert places[0] == places[1]


def test_splits_mix_the_constructions(task: Task) -> None:
    names = task.origin["constructions"]
    assert len(names) == 10
    where = {
        e.prompt: name for part in generate(0).values() for name, rows in part.items() for e in rows
    }
    for rows in task.splits.values():
        assert Counter(where[e.prompt] for e in rows).keys() == set(names)
        assert set(names) == {where[e.prompt] for e in rows[:100]}


def test_forms_are_regular_english(task: Task) -> None:
    """Each singular form always meets the same plural form."""
    pairs = {
        tuple(sorted(differing_word(e), key=lambda form: bool(PLURAL.fullmatch(form))))
        for rows in task.splits.values()
        for e in rows
    }
    assert len({singular for singular, _ in pairs}) == len(pairs)
    irregular = {("is", "are"), ("was", "were"), ("has", "have"), ("does", "do")}
    irregular |= {("himself", "themselves"), ("herself", "themselves")}
    for singular, plural in pairs - irregular:
        assert singular == f"{plural}s" or plural == f"{singular}s"
