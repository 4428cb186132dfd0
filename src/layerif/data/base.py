"""What a task is: examples of prompt, completion and candidates, in three disjoint splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from layerif.core.progress import note
from layerif.errors import InputError

if TYPE_CHECKING:
    from layerif.data.styles import Request

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Example:
    """One row as a model meets it.

    `prompt + completion` is the text; only the completion is scored. A multiple-choice row varies
    one of the two: `choices` are candidate completions after the one prompt, or `contexts` are
    candidate prompts before the one completion (which is how WinoGrande is scored). `answer` is
    the index of the right one, `completion == choices[answer]` or `prompt == contexts[answer]`.
    All three are empty for free text.
    """

    prompt: str
    completion: str
    choices: tuple[str, ...] = ()
    answer: int | None = None
    contexts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.choices and self.contexts:
            raise InputError(
                "an example varies its completion (choices) or its prompt (contexts), not both"
            )
        of_prompts = ("prompt", self.prompt, "context", self.contexts)
        of_completions = ("completion", self.completion, "choice", self.choices)
        name, varied, kind, candidates = of_prompts if self.contexts else of_completions
        if not candidates and self.answer is None:
            return
        if not candidates:
            raise InputError("an example with an answer index needs its choices or contexts")
        if self.answer is None or not 0 <= self.answer < len(candidates):
            raise InputError(
                f"answer {self.answer!r} is not the index of one of {len(candidates)} {kind}s"
            )
        if varied != candidates[self.answer]:
            raise InputError(
                f"{name} {varied!r} is not {kind} {self.answer}, {candidates[self.answer]!r}"
            )

    def candidates(self) -> tuple[tuple[str, str], ...]:
        """The (prompt, completion) pairs whose likelihoods are compared; free text has one."""
        if self.contexts:
            return tuple((context, self.completion) for context in self.contexts)
        return tuple((self.prompt, choice) for choice in self.choices or (self.completion,))

    @property
    def key(self) -> Hashable:
        """What no two splits may share: the prompt, or the contexts in whatever order.

        Two rows of WinoGrande that differ in the continuation alone have one key.
        """
        return tuple(sorted(self.contexts)) or self.prompt

    @property
    def question(self) -> Hashable:
        """The row but for its answer; of rows that ask the same a split keeps the first."""
        return self.key, self.completion if self.contexts else self.choices


@dataclass(frozen=True)
class Task:
    """A named data set of examples.

    Attributes:
        name: what the user asked for.
        splits: train, validation and test; no prompt occurs in two of them (no `Example.key`).
        origin: where the rows come from and how the splits were made, for the record that is kept
            with every artifact (plain JSON values only).
        continues: the prompt is the beginning of a text and asks for nothing; the candidates are
            ways to go on.
    """

    name: str
    splits: Mapping[Split, Sequence[Example]]
    origin: dict[str, Any] = field(default_factory=dict)
    continues: bool = False

    def hashed(self) -> Task:
        """The task with the number of rows of each split, and their `digest`, in its origin."""
        about = {
            "rows": {split: len(rows) for split, rows in self.splits.items()},
            "sha256": {split: digest(rows) for split, rows in self.splits.items()},
        }
        return replace(self, origin={**self.origin, **about})

    def default(self, split: Split, count: int) -> int:
        """A count of rows that nobody asked for: where the split has fewer, all of them."""
        there = len(self.splits[split])
        if there < count:
            note(f"task {self.name}: all {there} {split} rows are used, where {count} are usual")
        return min(count, there)

    def sample(self, split: Split, count: int | None, seed: int) -> list[Example]:
        """`count` examples of a split, drawn without replacement (all of it, in order, for None).

        The first k of a draw of n are the draw of k, so that a larger run extends a smaller one.

        Raises:
            InputError: the split has fewer than `count` examples.
        """
        examples = self.splits[split]
        if count is None:
            return list(examples)
        name = "samples" if split == "test" else f"{split}_samples"
        if count < 1:
            raise InputError(f"{name} must be at least 1, not {count}")
        if count > len(examples):
            raise InputError(
                f"task {self.name!r} has {len(examples)} {split} examples, fewer than the {count} "
                f"asked for ({name}); ask for at most {len(examples)}"
            )
        if seed < 0:
            raise InputError(f"the seed must not be negative, and is {seed}")
        import numpy as np

        order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(examples))
        return [examples[i] for i in order[:count]]


@dataclass(frozen=True)
class NamedTask:
    """A task that can be had by name.

    Attributes:
        load: the task as it is asked for. Prompts are made by `request.render(instruction)`, and
            the task's origin holds `request.styled`.
        asks: what it asks, in a few words.
        source: where its rows come from.
        candidates: how many answers a row offers.
        continues: its prompts are texts to go on with, so no style changes them.
        in_harness: it can be asked in the words of lm-evaluation-harness.
    """

    load: Callable[[Request], Task]
    asks: str
    source: str
    candidates: str
    continues: bool = False
    in_harness: bool = False


def digest(examples: Iterable[Example]) -> str:
    """The SHA-256 of the rows and their order, as hexadecimal digits."""
    total = hashlib.sha256()
    for e in examples:
        row = [e.prompt, e.completion, e.choices, e.answer]
        total.update(json.dumps([*row, e.contexts] if e.contexts else row).encode())
        total.update(b"\n")
    return total.hexdigest()
