"""Random choices for the tasks that are generated, and the words they choose from."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, TypeVar

T = TypeVar("T")


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
