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
from layerif.data.draw import Draw
from layerif.data.splits import count_and_hash
from layerif.data.styles import Render, renderer, style_record

CANDIDATES = 4
# Multiples of twice the candidates, so that the places of the answer come out even.
ROWS_PER_KIND: dict[Split, int] = {"train": 240, "validation": 56, "test": 120}
INSTRUCTION = (
    "Read the passage and answer the question.\n\nPassage: {passage}\nQuestion: {question}"
)

NAMES = (
    *("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Henry", "Irene", "James"),
    *("Karen", "Louis", "Maria", "Nadia", "Oscar", "Paula", "Ralph", "Sarah", "Tomas", "Vera"),
)


@dataclass(frozen=True)
class Kind:
    """One kind of fact about a person.

    Attributes:
        told: templates of the sentence that tells it, with `{name}` and `{value}`.
        asked: template of the question, with `{name}`.
        values: what is true of one person or another.
    """

    told: tuple[str, ...]
    asked: str
    values: Sequence[str]


KINDS: dict[str, Kind] = {
    "city": Kind(
        ("{name} lives in {value}.", "{name} moved to {value} two years ago."),
        "Where does {name} live?",
        (
            *("Lisbon", "Oslo", "Cairo", "Lima", "Dublin", "Athens", "Boston", "Delhi", "Prague"),
            *("Madrid", "Nairobi", "Sydney", "Toronto", "Vienna", "Warsaw", "Zurich"),
        ),
    ),
    "job": Kind(
        ("{name} works as a {value}.", "{name} has always wanted to be a {value} and became one."),
        "What is the job of {name}?",
        (
            *("baker", "nurse", "lawyer", "painter", "pilot", "teacher", "farmer", "tailor"),
            *("singer", "dentist", "plumber", "reporter", "chemist", "carpenter"),
        ),
    ),
    "pet": Kind(
        ("{name} has a {value}.", "{name} looks after a {value} at home."),
        "What kind of animal does {name} have?",
        (
            *("cat", "dog", "parrot", "rabbit", "horse", "turtle", "goat", "hamster", "canary"),
            *("pony", "goldfish", "lizard"),
        ),
    ),
    "room": Kind(
        ("{name} is waiting in the {value}.", "{name} has left the umbrella in the {value}."),
        "Which room does the passage mention with {name}?",
        (
            *("kitchen", "cellar", "attic", "garage", "library", "bedroom", "hallway"),
            *("workshop", "bathroom", "pantry"),
        ),
    ),
    "colour": Kind(
        ("{name} drives a {value} car.", "{name} painted the front door {value}."),
        "Which colour does the passage mention with {name}?",
        (
            *("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange"),
            "grey",
        ),
    ),
    "weekday": Kind(
        ("{name} plays chess on {value}.", "{name} does the shopping on {value}."),
        "Which day of the week does the passage mention with {name}?",
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ),
    "number": Kind(
        ("{name} has read {value} books this year.", "{name} picked {value} apples."),
        "Which number does the passage mention with {name}?",
        tuple(str(number) for number in range(12, 99)),
    ),
    "year": Kind(
        ("{name} was born in {value}.", "{name} left school in {value}."),
        "Which year does the passage mention with {name}?",
        tuple(str(year) for year in range(1931, 2010)),
    ),
}
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
