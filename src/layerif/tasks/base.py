"""What a task is: examples of prompt, completion and candidates, in three disjoint splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from layerif.errors import InputError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Example:
    """One row as a model meets it.

    `prompt + completion` is the text; only the completion is scored. `choices` are the candidate
    completions of a multiple-choice row and `answer` the index of the right one, so that
    `completion == choices[answer]`; both are empty for free text.
    """

    prompt: str
    completion: str
    choices: tuple[str, ...] = ()
    answer: int | None = None

    def __post_init__(self) -> None:
        if not self.choices:
            if self.answer is not None:
                raise InputError("an example with an answer index needs its choices")
            return
        if self.answer is None or not 0 <= self.answer < len(self.choices):
            raise InputError(
                f"answer {self.answer!r} is not the index of one of {len(self.choices)} choices"
            )
        if self.completion != self.choices[self.answer]:
            raise InputError(
                f"completion {self.completion!r} is not choice {self.answer}, "
                f"{self.choices[self.answer]!r}"
            )


@dataclass(frozen=True)
class Task:
    """A named data set of examples.

    Attributes:
        name: what the user asked for.
        splits: train, validation and test; no prompt occurs in two of them.
        origin: where the rows come from and how the splits were made, for the record that is kept
            with every artifact (plain JSON values only).
    """

    name: str
    splits: dict[Split, Sequence[Example]]
    origin: dict[str, Any] = field(default_factory=dict)

    def sample(self, split: Split, count: int | None, seed: int) -> list[Example]:
        """`count` examples of a split, drawn without replacement (all of it, in order, for None).

        The first k of a draw of n are the draw of k, so that a larger run extends a smaller one.

        Raises:
            InputError: the split has fewer than `count` examples.
        """
        examples = self.splits[split]
        if count is None:
            return list(examples)
        if count < 1:
            raise InputError(f"the number of {split} samples must be at least 1, not {count}")
        if count > len(examples):
            raise InputError(
                f"task {self.name!r} has {len(examples)} {split} examples, fewer than the {count} "
                f"asked for; ask for at most {len(examples)}"
            )
        if seed < 0:
            raise InputError(f"the seed must not be negative, and is {seed}")
        import numpy as np

        order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(examples))
        return [examples[i] for i in order[:count]]
