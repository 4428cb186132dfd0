"""A generated task in which every row tells the grammatical continuation from one that is not.

The prompt is a sentence up to the word that has to agree; the two choices carry it on to the full
stop and differ in that word alone. The prompt also holds attractors, words mostly of the other
number that the critical word must not agree with, so that the nearest noun is a poor guide; and a
liking for one number is worth nothing, because in every construction of every split half of the
rows are right in the plural. The task needs no download, and its rows depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from layerif.data.base import Example, NamedTask, Split, Task
from layerif.data.draw import Draw, Rows, generated, mixed, words_of
from layerif.data.styles import Request

# A noun is its singular, or singular/plural where the plural is irregular. A predicate begins with
# its verb in both numbers, `is/are`, and nothing after the verb shows number. An `objects` relation
# is a head with its preposition and what may follow; a surrounding, a preposition and what may.
WORDS = words_of("agreement")
ROWS_PER_CONSTRUCTION: dict[Split, int] = {"train": 200, "validation": 52, "test": 100}
# The share of attractors that differ in number from the critical word.
ATTRACTION = 0.9


def noun(entry: str, plural: bool) -> str:
    """`key` or `woman/women` in the number asked for."""
    singular, _, irregular = entry.partition("/")
    if not plural:
        return singular
    head, of, rest = singular.partition(" of ")
    return irregular or f"{head}s{of}{rest}"


def continuations(predicate: str, plural: bool) -> tuple[str, str]:
    """`is/are late` as the right and the wrong continuation: (` are late.`, ` is late.`)."""
    verb, rest = predicate.split(" ", 1)
    singular, many = (f" {form} {rest}." for form in verb.split("/"))
    return (many, singular) if plural else (singular, many)


# A construction draws a sentence up to its critical word, and a predicate that begins with that.
Sentence = tuple[str, str]
Construction = Callable[[Draw, bool], Sentence]


def _attractor(draw: Draw, entry: str, plural: bool) -> str:
    return noun(entry, plural != draw.chance(ATTRACTION))


def _aside(draw: Draw, phrases: Mapping[str, Sequence[str]], plural: bool) -> str:
    """A prepositional phrase with an attractor in it."""
    preposition, entries = draw.pick(list(phrases.items()))
    return f" {preposition} the {_attractor(draw, draw.pick(entries), plural)}"


def _open(draw: Draw, sentence: str, plural: bool) -> str:
    """The sentence with a capital, or after an opening phrase with one more attractor."""
    if draw.chance(0.5):
        sentence = f"{_aside(draw, WORDS['openers'], plural)[1:]}, {sentence}"
    return sentence[0].upper() + sentence[1:]


def _relation(draw: Draw, relations: Mapping[str, Sequence[str]]) -> tuple[str, str, str]:
    """A head, its preposition and an attractor: `key`, `to`, `gate`."""
    relation, attractors = draw.pick(list(relations.items()))
    head, preposition = relation.split(" ", 1)
    return head, preposition, draw.pick(attractors)


def _related(draw: Draw, plural: bool, shares: Sequence[str] = ()) -> tuple[Any, str]:
    """Words for things, and a subject with an attractor: the keys to the cabinet.

    With `shares` it is one of them: one of the keys to the cabinet.
    """
    things = draw.pick((WORDS["objects"], WORDS["places"]))
    head, preposition, attractor = _relation(draw, things["relations"])
    share = f"{draw.pick(shares)} of " if shares else ""
    heads = f"{draw.pick(things['adjectives'])}{noun(head, plural or bool(shares))}"
    subject = f"{share}the {heads} {preposition} the {_attractor(draw, attractor, plural)}"
    return things, subject


def prepositional(draw: Draw, plural: bool) -> Sentence:
    """The keys to the cabinet | are on the table."""
    things, subject = _related(draw, plural)
    return _open(draw, subject, plural), draw.pick(things["predicates"])


def nested(draw: Draw, plural: bool) -> Sentence:
    """The label on the bottles near the stations | is on the table."""
    things, subject = _related(draw, plural)
    if draw.chance(0.5):
        subject += _aside(draw, things["surroundings"], plural)
    else:
        witness = _attractor(draw, draw.pick(WORDS["people"]), plural)
        subject += f" the {witness} {draw.pick(WORDS['mentions'])}"
    return _open(draw, subject, plural), draw.pick(things["predicates"])


def partitive(draw: Draw, plural: bool) -> Sentence:
    """One of the towers above the villages | was damaged in the storm."""
    shares = WORDS["plural_shares"] if plural else WORDS["singular_shares"]
    things, prompt = _related(draw, plural, shares)
    return prompt, draw.pick(things["predicates"])


def _two_people(draw: Draw, plural: bool) -> tuple[str, str]:
    """Two different groups or persons: the head in the number asked for, and an attractor."""
    head = draw.pick(WORDS["people"])
    other = draw.pick([entry for entry in WORDS["people"] if entry != head])
    return noun(head, plural), _attractor(draw, other, plural)


def subject_relative(draw: Draw, plural: bool) -> Sentence:
    """The coach who praised the players after the show | lives in a small town."""
    head, other = _two_people(draw, plural)
    deed, occasion = draw.pick(WORDS["deeds"]), _aside(draw, WORDS["occasions"], plural)
    prompt = _open(draw, f"the {head} who {deed} the {other}{occasion}", plural)
    return prompt, draw.pick(WORDS["person_predicates"])


def object_relative(draw: Draw, plural: bool) -> Sentence:
    """The farmers the lawyer visited after the lesson | want to move."""
    head, other = _two_people(draw, plural)
    that = draw.pick(("that ", "", ""))
    deed, occasion = draw.pick(WORDS["deeds"]), _aside(draw, WORDS["occasions"], plural)
    prompt = _open(draw, f"the {head} {that}the {other} {deed}{occasion}", plural)
    return prompt, draw.pick(WORDS["person_predicates"])


def parenthetical(draw: Draw, plural: bool) -> Sentence:
    """The sailor, unlike the pilots the guards had described, | knows a great deal."""
    head, other = _two_people(draw, plural)
    witness = _attractor(draw, draw.pick(WORDS["people"]), plural)
    others = f"the {other} the {witness} {draw.pick(WORDS['mentions'])}"
    prompt = _open(draw, f"the {head}, {draw.pick(WORDS['exceptions'])} {others},", plural)
    return prompt, draw.pick(WORDS["person_predicates"])


def coordination(draw: Draw, plural: bool) -> Sentence:
    """The clerks thanked the visitor near the gate and | were invited to dinner."""
    head, other = _two_people(draw, plural)
    # The first verb is a past form, which would say nothing about the number of its subject.
    deed, place = draw.pick(WORDS["deeds"]), _aside(draw, WORDS["people_from"], plural)
    prompt = _open(draw, f"the {head} {deed} the {other}{place} and", plural)
    return prompt, draw.pick(WORDS["outcomes"])


def determiner_noun(draw: Draw, plural: bool) -> Sentence:
    """We had forgotten about those rather dusty one-dollar | labels on the jar on the way home."""
    head, preposition, attractor = _relation(draw, WORDS["objects"]["relations"])
    determiner = draw.pick(WORDS["determiners"]).split("/")[plural]
    number = "one" if plural == draw.chance(ATTRACTION) else draw.pick(("two", "three", "ten"))
    description = f"{draw.pick(WORDS['descriptions'])} {number}-{draw.pick(WORDS['measures'])}"
    pair = f"{noun(head, False)}/{noun(head, True)}"
    rest = f"{preposition} the {_attractor(draw, attractor, plural)} {draw.pick(WORDS['later'])}"
    prompt = f"{draw.pick(WORDS['searches'])} {determiner} {description}"
    return prompt, f"{pair} {rest}"


def reflexive(draw: Draw, plural: bool) -> Sentence:
    """The queen who thanked the girls defended | herself ...; or, bound by an object,

    the queen told the girls near the gate to defend | themselves ...
    """
    people, pronoun = draw.pick(((WORDS["men"], "himself"), (WORDS["women"], "herself")))
    one = draw.pick(people)
    # Both of one gender, so that number alone decides.
    other = draw.pick([entry for entry in people if entry != one])
    bound, attractor = noun(one, plural), _attractor(draw, other, plural)
    verb, rests = draw.pick(list(WORDS["reflexive_predicates"].items()))
    base, past = verb.split("/")
    if draw.chance(0.5):
        deed, occasion = draw.pick(WORDS["deeds"]), _aside(draw, WORDS["occasions"], plural)
        sentence = f"the {bound} who {deed} the {attractor}{occasion} {past}"
    else:
        place = _aside(draw, WORDS["people_from"], plural)
        sentence = f"the {attractor} {draw.pick(WORDS['orders'])} the {bound}{place} to {base}"
    predicate = f"{pronoun}/themselves {draw.pick(rests)}"
    return _open(draw, sentence, plural), predicate


def inversion(draw: Draw, plural: bool) -> Sentence:
    """On the shelves in the kitchens | stands a jar of honey; or with the expletive,

    behind the door in the attic there | are two bowls of fresh fruit.
    """
    preposition, spots = draw.pick(list(WORDS["spots"].items()))
    spot, room = (
        _attractor(draw, draw.pick(entries), plural) for entries in (spots, WORDS["rooms"])
    )
    place = f"{preposition} the {draw.pick(WORDS['spot_adjectives'])}{spot} in the {room}"
    there, verbs = draw.pick(((" there", WORDS["being"]), ("", WORDS["standing"])))
    count = draw.pick(("two", "three", "several", "some", "a few")) if plural else "a"
    what = noun(draw.pick(WORDS["contents"]), plural)
    predicate = f"{draw.pick(verbs)} {count} {what} {draw.pick(WORDS['purposes'])}"
    return _open(draw, place + there, plural), predicate


CONSTRUCTIONS: tuple[Construction, ...] = (
    prepositional,
    nested,
    partitive,
    subject_relative,
    object_relative,
    parenthetical,
    coordination,
    determiner_noun,
    reflexive,
    inversion,
)


def _example(draw: Draw, construction: Construction, place: int) -> Example:
    """Every other row is right in the plural; every two rows the right choice changes places."""
    plural = place % 2 == 1
    prompt, predicate = construction(draw, plural)
    right, wrong = continuations(predicate, plural)
    answer = place // 2 % 2
    return Example(prompt, right, (wrong, right) if answer else (right, wrong), answer)


def generate(seed: int = 0) -> Rows:
    """The rows by split and construction; all prompts are different.

    In each list half of the rows are right in the plural, and in each half of those the right
    choice comes first.
    """
    draw = Draw(seed)
    makers = {each.__name__: partial(_example, draw, each) for each in CONSTRUCTIONS}
    return generated(makers, ROWS_PER_CONSTRUCTION)


def agreement(request: Request) -> Task:
    """The task, with the constructions of each split mixed."""
    names = [construction.__name__ for construction in CONSTRUCTIONS]
    origin = {"source": "generated", "seed": request.seed, "constructions": names}
    splits = mixed(generate(request.seed), request.seed)
    return Task("agreement", splits, origin, continues=True)


AGREEMENT = NamedTask(
    agreement, "which continuation is grammatical?", "generated", "2", continues=True
)
