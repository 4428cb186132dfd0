"""What an example may be, and what of two examples makes them the same."""

from __future__ import annotations

from typing import Any

import pytest

from layerif.data import Example
from layerif.data.base import digest
from layerif.data.splits import carve, disjoint
from layerif.errors import InputError

TWIN = Example("Ann", " won.", contexts=("Ann", "Bob"), answer=0)
OTHER_TWIN = Example("Ann", " lost.", contexts=("Bob", "Ann"), answer=1)


def test_candidates() -> None:
    assert TWIN.candidates() == (("Ann", " won."), ("Bob", " won."))
    assert Example("a", "c", ("b", "c"), 1).candidates() == (("a", "b"), ("a", "c"))
    assert Example("a", "b").candidates() == (("a", "b"),)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"choices": ("c",), "contexts": ("p",), "answer": 0}, "not both"),
        ({"answer": 0}, "choices or contexts"),
        ({"contexts": ("p", "q")}, "answer None .*2 contexts"),
        ({"contexts": ("p", "q"), "answer": 2}, "answer 2 .*2 contexts"),
        ({"contexts": ("p", "q"), "answer": 1}, "'p' .*'q'"),
        ({"choices": ("c", "d"), "answer": 1}, "'c' .*'d'"),
    ],
)
def test_refusals(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Example("p", "c", **values)


def test_rows_of_the_same_contexts_belong_together() -> None:
    assert TWIN.key == OTHER_TWIN.key
    assert TWIN.question != OTHER_TWIN.question
    splits, dropped = disjoint({"train": [TWIN], "validation": [], "test": [OTHER_TWIN, TWIN]})
    assert splits == {"train": [], "validation": [], "test": [OTHER_TWIN, TWIN]}
    assert dropped["train"] == {"prompt in test": 1}
    others = [Example(str(i), "c") for i in range(9)]
    for seed in range(5):
        parts = carve([TWIN, *others, OTHER_TWIN], {"test": 0.5}, seed).values()
        assert sum(TWIN in part and OTHER_TWIN in part for part in parts) == 1


def test_rows_that_differ_in_choices_are_not_repeats() -> None:
    rows = [Example("p", "a", ("a", "b"), 0), Example("p", "c", ("c", "d"), 0)]
    splits, _ = disjoint({"train": [], "validation": [], "test": [*rows, rows[0]]})
    assert splits["test"] == rows


def test_contexts_are_part_of_the_digest() -> None:
    assert digest([TWIN]) != digest([Example("Ann", " won.", contexts=("Ann", "Eve"), answer=0)])
