"""A generated task in which every row asks about a short invented passage.

The passage has three facts about two people, and the question is about one fact. Of the four
candidates one is right; in half of the rows, the harder ones, the passage says another of them of
the other person, and in the rest it has none of the others. What the passage says is invented, so
that knowledge of the world is worth nothing. Nor is a liking for one place: the right candidate is
equally often at each, and the facts are in random order. The task needs no download, and its rows
depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerif.core.choices import PromptStyle
from layerif.data.base import Example, Split, Task
from layerif.data.declared import ANSWER_BY_TEXT
from layerif.data.draw import Draw, words_of
from layerif.data.splits import count_and_hash
from layerif.data.styles import Render, renderer, style_record

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
Rows = dict[Split, dict[str, list[Example]]]


def _tell(draw: Draw, kind: Kind, name: str, value: str) -> str:
    return draw.pick(kind.told).format(name=name, value=value)


def _row(draw: Draw, kind: Kind, *, rival: bool, answer: int) -> tuple[str, list[str]]:
    """An instruction, and the candidates' texts with the right one at `answer`."""
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
    instruction = INSTRUCTION.format(passage=" ".join(told), question=question)
    return instruction, [*wrong[:answer], right, *wrong[answer:]]


def generate(seed: int = 0, render: Render = str) -> Rows:
    """The rows by split and kind; all passages are different.

    In each list half of the rows have a rival candidate in the passage, and in each half the right
    candidate is equally often at each place.
    """
    draw = Draw(seed)
    taken: set[str] = set()
    rows: Rows = {split: {} for split in ROWS_PER_KIND}
    for name, kind in KINDS.items():
        for split, count in ROWS_PER_KIND.items():
            examples: list[Example] = []
            while len(examples) < count:
                answer, rival = len(examples) // 2 % CANDIDATES, len(examples) % 2 == 1
                instruction, texts = _row(draw, kind, rival=rival, answer=answer)
                if instruction in taken:
                    continue
                taken.add(instruction)
                choices = tuple(ANSWER_BY_TEXT.format(text=text) for text in texts)
                examples.append(Example(render(instruction), choices[answer], choices, answer))
            rows[split][name] = examples
    return rows


def facts(
    seed: int = 0,
    style: PromptStyle = "alpaca",
    tokenizer: Any = None,
    template_options: Mapping[str, Any] | None = None,
) -> Task:
    """The task, with the kinds of each split mixed.

    Raises:
        InputError: there is no such style, or no chat template for `chat`.
    """
    render = renderer(style, tokenizer, template_options)
    draw = Draw(seed)
    splits: dict[Split, Sequence[Example]] = {}
    for split, kinds in generate(seed, render).items():
        examples = [example for rows in kinds.values() for example in rows]
        draw.shuffle(examples)
        splits[split] = examples
    origin = {
        "source": "generated",
        "seed": seed,
        **style_record(style, template_options),
        "kinds": list(KINDS),
        **count_and_hash(splits),
    }
    return Task("facts", splits, origin)
