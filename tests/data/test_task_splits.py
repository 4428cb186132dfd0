"""Splits share no prompt, and say what they lost."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from layerif.data import SPLITS, Example
from layerif.data.base import digest
from layerif.data.splits import carve, disjoint

prompts = st.lists(st.sampled_from("abcdefgh"), max_size=12)


def examples(names: list[str] | str) -> list[Example]:
    return [Example(name, f"{name}{i}") for i, name in enumerate(names)]


@settings(max_examples=50)
@given(train=prompts, validation=prompts, test=prompts)
def test_disjoint_splits(train: list[str], validation: list[str], test: list[str]) -> None:
    given_rows = dict(zip(SPLITS, map(examples, (train, validation, test)), strict=True))
    splits, dropped = disjoint(given_rows)

    assert list(splits) == list(SPLITS)
    kept = {split: [e.prompt for e in rows] for split, rows in splits.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not set(kept[one]) & set(kept[other])
    for split in SPLITS:
        assert len(kept[split]) + sum(dropped[split].values()) == len(given_rows[split])
        assert len(set(kept[split])) == len(kept[split])
    assert kept["test"] == list(dict.fromkeys(test))
    assert set().union(*kept.values()) == {*train, *validation, *test}


def test_disjoint_says_why_rows_were_dropped() -> None:
    splits, dropped = disjoint(
        {"train": examples("aabcd"), "validation": examples("bce"), "test": examples("cff")}
    )
    assert [e.completion for e in splits["train"]] == ["a0", "d4"]
    assert dropped == {
        "train": {"repeated": 1, "prompt in validation": 1, "prompt in test": 1},
        "validation": {"prompt in test": 1},
        "test": {"repeated": 1},
    }


def test_carve_keeps_rows_of_a_prompt_together_and_in_order() -> None:
    rows = examples([str(i % 50) for i in range(100)])
    dealt = carve(rows, {"validation": 0.1, "test": 0.2}, seed=3)

    assert {split: len(part) for split, part in dealt.items()} == {
        "train": 70,
        "validation": 10,
        "test": 20,
    }
    for part in dealt.values():
        assert part == [e for e in rows if e in set(part)]
    names = [{e.prompt for e in part} for part in dealt.values()]
    assert sum(map(len, names)) == len(set().union(*names)) == 50
    assert dealt == carve(rows, {"validation": 0.1, "test": 0.2}, seed=3)
    assert dealt != carve(rows, {"validation": 0.1, "test": 0.2}, seed=4)


def test_carve_gives_every_split_a_prompt() -> None:
    dealt = carve(examples("abc"), {"validation": 0.1, "test": 0.1}, seed=0)
    assert [len(part) for part in dealt.values()] == [1, 1, 1]


def test_digest_tells_rows_and_their_order() -> None:
    one, other = Example("a", "b"), Example("a", "b", ("b", "c"), 0)
    assert digest([one]) != digest([other])
    assert digest([one, other]) != digest([other, one])
    assert digest([one, other]) == digest([one, other])
