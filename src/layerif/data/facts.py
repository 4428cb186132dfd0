"""A generated task in which every row asks about a short invented passage.

The passage has three facts about two people, and the question is about one fact. Of the four
candidates one is right; in half of the rows, the harder ones, the passage says another of them of
the other person, and in the rest it has none of the others. What the passage says is invented, so
that knowledge of the world is worth nothing. Nor is a liking for one place: the right candidate is
equally often at each, and the facts are in random order. The task needs no download, and its rows
depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from layerif.data.base import Example, NamedTask, Split, Task
from layerif.data.declared import ANSWER_BY_TEXT
from layerif.data.draw import Draw, Rows, generated, mixed, words_of
from layerif.data.styles import Render, Request

CANDIDATES = 4
# Multiples of twice the candidates, so that the places of the answer come out even.
ROWS_PER_KIND: dict[Split, int] = {"train": 240, "validation": 56, "test": 120}
INSTRUCTION = (
    "Read the passage and answer the question.\n\nPassage: {passage}\nQuestion: {question}"
)


@dataclass(frozen=True)
class Kind:
    """One kind of fact about a person.

    Attributes:
        told: templates of the sentence that tells it, with `{name}` and `{value}`.
        asked: template of the question, with `{name}`.
        values: what is true of one person or another.
    """

    told: Sequence[str]
    asked: str
    values: Sequence[str]


WORDS = words_of("facts")
NAMES: list[str] = WORDS["names"]
KINDS = {name: Kind(**kind) for name, kind in WORDS["kinds"].items()}


def _tell(draw: Draw, kind: Kind, name: str, value: str) -> str:
    return draw.pick(kind.told).format(name=name, value=value)


def _example(draw: Draw, kind: Kind, render: Render, place: int) -> Example:
    """Every other row has a rival in its passage; every two rows the answer moves by a place."""
    rival, answer = place % 2 == 1, place // 2 % CANDIDATES
    name, other = draw.several(NAMES, 2)
    right, *wrong = draw.several(kind.values, CANDIDATES)
    beside, more = draw.several([each for each in KINDS.values() if each is not kind], 2)
    told = [
        _tell(draw, kind, name, right),
        _tell(draw, kind, other, wrong[0])
        if rival
        else _tell(draw, beside, other, draw.pick(beside.values)),
        _tell(draw, more, name, draw.pick(more.values)),
    ]
    draw.shuffle(told)
    draw.shuffle(wrong)
    question = kind.asked.format(name=name)
    prompt = render(INSTRUCTION.format(passage=" ".join(told), question=question))
    texts = [*wrong[:answer], right, *wrong[answer:]]
    choices = tuple(ANSWER_BY_TEXT.format(text=text) for text in texts)
    return Example(prompt, choices[answer], choices, answer)


def generate(seed: int = 0, render: Render = str) -> Rows:
    """The rows by split and kind; all passages are different.

    In each list half of the rows have a rival candidate in the passage, and in each half the right
    candidate is equally often at each place.
    """
    draw = Draw(seed)
    makers = {name: partial(_example, draw, kind, render) for name, kind in KINDS.items()}
    return generated(makers, ROWS_PER_KIND)


def facts(request: Request) -> Task:
    """The task, with the kinds of each split mixed."""
    about = {"source": "generated", "seed": request.seed, **request.styled, "kinds": list(KINDS)}
    return Task("facts", mixed(generate(request.seed, request.render), request.seed), about)


FACTS = NamedTask(facts, "a short invented passage and a question about it", "generated", "4")
