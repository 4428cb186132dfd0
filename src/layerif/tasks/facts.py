"""A generated task in which every row asks about a short invented passage.

The passage says the same kind of thing of three or four people or objects, and the question is
about one of them; the candidates are all that the passage offers, so that only who goes with what
tells them apart, and knowledge of the world is worth nothing. Nor is a liking for one place: the
answer is told first, second, third and so on equally often, and stands equally often at each place
among the candidates. The task needs no download, and its rows depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from layerif.choices import PromptStyle
from layerif.tasks.base import Example, Split, Task
from layerif.tasks.declared import ANSWER_BY_TEXT
from layerif.tasks.draw import Draw
from layerif.tasks.splits import count_and_hash
from layerif.tasks.styles import Render, renderer

# Multiples of 3 and of 4, so that places of the answer come out even.
ROWS_PER_KIND: dict[Split, int] = {"train": 300, "validation": 60, "test": 120}
INSTRUCTION = "Read the passage and answer the question.\n\nPassage: {passage}\nQuestion: {question}"

NAMES = (
    *("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Henry", "Irene", "James"),
    *("Karen", "Louis", "Maria", "Nadia", "Oscar", "Paula", "Ralph", "Sarah", "Tomas", "Vera"),
)
CITIES = (
    *("Lisbon", "Oslo", "Cairo", "Lima", "Dublin", "Athens", "Boston", "Delhi", "Prague"),
    *("Madrid", "Nairobi", "Sydney", "Toronto", "Vienna", "Warsaw", "Zurich"),
)
JOBS = (
    *("baker", "nurse", "lawyer", "painter", "pilot", "teacher", "farmer", "tailor", "singer"),
    *("dentist", "plumber", "reporter", "chemist", "carpenter"),
)
PETS = (
    *("cat", "dog", "parrot", "rabbit", "horse", "turtle", "goat", "hamster", "canary", "pony"),
    *("goldfish", "lizard"),
)
OBJECTS = (
    *("key", "lamp", "map", "kettle", "camera", "umbrella", "violin", "clock", "letter", "basket"),
    *("hammer", "telescope", "blanket", "mirror"),
)
ROOMS = (
    *("kitchen", "cellar", "attic", "garage", "garden", "library", "bedroom", "hallway"),
    *("workshop", "bathroom"),
)
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "grey")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBERS = tuple(str(number) for number in range(12, 98) if number % 10)
YEARS = tuple(str(year) for year in range(1931, 2010))


@dataclass(frozen=True)
class Kind:
    """One kind of fact.

    Attributes:
        subjects, values: what is drawn to go together, a pair for each sentence.
        told: templates of a sentence; a passage keeps to one.
        asked: templates of the question, of which a row takes one.
        inverse: whether the value is given and the subject asked for.
    """

    subjects: Sequence[str]
    values: Sequence[str]
    told: Sequence[str]
    asked: Sequence[str]
    inverse: bool = False


_LIVES = ("{subject} lives in {value}.", "{subject} moved to {value} last year.")
_WORKS = ("{subject} is a {value}.", "{subject} works as a {value} in a small town.")
_OWNS = ("{subject} has a {value}.", "{subject} looks after a {value} at home.")
_LIES = ("The {subject} is in the {value}.", "Somebody left the {subject} in the {value}.")

KINDS: dict[str, Kind] = {
    "city": Kind(NAMES, CITIES, _LIVES, ("In which city does {subject} live now?",)),
    "resident": Kind(NAMES, CITIES, _LIVES, ("Who lives in {value} now?",), inverse=True),
    "job": Kind(NAMES, JOBS, _WORKS, ("What is the job of {subject}?",)),
    "worker": Kind(NAMES, JOBS, _WORKS, ("Who is the {value}?",), inverse=True),
    "pet": Kind(NAMES, PETS, _OWNS, ("What kind of animal does {subject} have?",)),
    "room": Kind(OBJECTS, ROOMS, _LIES, ("In which room is the {subject}?",)),
    "colour": Kind(
        NAMES,
        COLOURS,
        ("{subject} drives a {value} car.", "{subject} painted the front door {value}."),
        ("Which colour goes with {subject}?",),
    ),
    "weekday": Kind(
        NAMES,
        WEEKDAYS,
        ("{subject} plays chess on {value}.", "{subject} does the shopping on {value}."),
        ("Which day of the week is it for {subject}?",),
    ),
    "number": Kind(
        NAMES,
        NUMBERS,
        ("{subject} counted {value} birds.", "{subject} picked {value} apples."),
        ("What is the number that {subject} reached?",),
    ),
    "year": Kind(
        NAMES,
        YEARS,
        ("{subject} was born in {value}.", "{subject} left school in {value}."),
        ("Which year belongs to {subject}?",),
    ),
}


def facts(seed: int = 0, style: PromptStyle = "alpaca", tokenizer: Any = None) -> Task:
    raise NotImplementedError
