"""What generated tasks share: words, random choices of them, and how rows are gathered."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from layerif.data.base import Example, Split

T = TypeVar("T")
# The rows of each split by what made them.
Rows = dict[Split, dict[str, list[Example]]]


def words_of(task: str) -> Any:
    """The lists of `words/<task>.json`, by name."""
    return json.loads(files("layerif.data").joinpath(f"words/{task}.json").read_text("utf-8"))


class Draw:
    """Random choices that repeat for a seed in every Python version.

    Python promises the same numbers for a seed from `random()` alone; how `choice` and `shuffle`
    use them may change.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._random.random() * len(options))]

    def shuffle(self, items: list[T]) -> None:
        for i in range(len(items) - 1, 0, -1):
            j = int(self._random.random() * (i + 1))
            items[i], items[j] = items[j], items[i]

    def several(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones, in random order."""
        rest = list(options)
        return [rest.pop(int(self._random.random() * len(rest))) for _ in range(count)]


def generated(makers: Mapping[str, Callable[[int], Example]], counts: Mapping[Split, int]) -> Rows:
    """So many rows of each split from each maker, all prompts different.

    Args:
        makers: by name; each draws the example for a place in its list.
        counts: rows of each split.
    """
    taken: set[str] = set()
    rows: Rows = {split: {} for split in counts}
    for name, make in makers.items():
        for split, count in counts.items():
            examples = rows[split][name] = []
            while len(examples) < count:
                example = make(len(examples))
                if example.prompt not in taken:
                    taken.add(example.prompt)
                    examples.append(example)
    return rows


def mixed(rows: Rows, seed: int) -> dict[Split, list[Example]]:
    """The rows of each split in random order."""
    draw = Draw(seed)
    splits = {
        split: [example for examples in parts.values() for example in examples]
        for split, parts in rows.items()
    }
    for examples in splits.values():
        draw.shuffle(examples)
    return splits
