"""The words of the agreement task.

A noun stands in its singular, or as singular/plural where the plural is irregular. A predicate
begins with its verb in both numbers, `is/are`, and nothing after the verb shows number.
"""

from __future__ import annotations

from dataclasses import dataclass

OPENERS = {
    "according to": ("guide", "expert", "newspaper", "witness/witnesses", "caretaker"),
    "in the words of": ("critic", "teacher", "engineer", "judge", "governor"),
    "to the surprise of": ("neighbour", "owner", "reporter", "guest", "child/children"),
}


@dataclass(frozen=True)
class Things:
    """A kind of thing: what one can be related to, be near to, be like, and what it can do.

    `relations` is a head with its preposition and what may follow it, `surroundings` a preposition
    and what may follow that.
    """

    relations: dict[str, tuple[str, ...]]
    surroundings: dict[str, tuple[str, ...]]
    adjectives: tuple[str, ...]
    predicates: tuple[str, ...]


OBJECTS = Things(
    relations={
        "key to": ("cabinet", "gate", "cellar", "locker", "van", "safe"),
        "label on": ("bottle", "jar", "crate", "parcel", "folder", "suitcase"),
        "letter from": ("lawyer", "cousin", "landlord", "teacher", "neighbour", "doctor"),
        "photograph of": ("bridge", "castle", "ship", "horse", "waterfall", "tower"),
        "note about": ("meeting", "concert", "exam", "trip", "repair", "delay"),
        "report on": ("factory/factories", "school", "harbour", "hospital", "mine", "forest"),
        "book about": ("island", "king", "desert", "comet", "glacier", "garden"),
        "recipe for": ("sauce", "soup", "pie", "salad", "cake", "stew"),
        "poster for": ("play", "film", "concert", "festival", "match/matches", "market"),
        "map of": ("island", "trail", "canal", "village", "cave", "valley"),
        "drawing of": ("bird", "boat", "windmill", "flower", "church/churches", "fox/foxes"),
        "cover of": ("magazine", "album", "notebook", "novel", "brochure", "catalogue"),
    },
    surroundings={
        "in": ("museum", "garden", "office", "harbour", "studio"),
        "near": ("station", "river", "market", "school", "border"),
    },
    adjectives=("", "", "old ", "new ", "small ", "other ", "strange "),
    predicates=(
        "is/are kept in a drawer near the front door",
        "was/were found behind the sofa last week",
        "has/have been missing since the beginning of the month",
        "was/were sent to the wrong office by mistake",
        "does/do not belong in this part of the building",
        "looks/look much older than the rest of the collection",
        "is/are on the table next to the telephone",
        "has/have to be returned before the end of the week",
        "seems/seem to have disappeared during the move",
        "needs/need to be checked again before tomorrow morning",
        "was/were lying on the floor when the guests arrived",
        "is/are more useful than anybody had expected",
        "has/have already been shown to the new owner",
        "was/were left on the train by accident",
    ),
)

PLACES = Things(
    relations={
        "shop beside": ("church/churches", "station", "bank", "school", "bridge"),
        "garden behind": ("house", "school", "museum", "chapel", "hotel"),
        "tree near": ("fountain", "barn", "gate", "pond", "cottage"),
        "tower above": ("village", "harbour", "vineyard", "river", "quarry/quarries"),
        "path past": ("farm", "mill", "factory/factories", "orchard", "lake"),
        "statue by": ("entrance", "canal", "theatre", "market", "library/libraries"),
        "wall around": ("garden", "castle", "field", "monastery/monasteries", "park"),
        "kiosk next to": ("cinema", "stadium", "bus stop", "playground", "ferry/ferries"),
        "hut below": ("glacier", "cliff", "dam", "waterfall", "summit"),
        "house opposite": ("hospital", "bakery/bakeries", "court", "tavern", "workshop"),
    },
    surroundings={
        "near": ("station", "river", "market", "school", "border"),
        "across": ("field", "square", "valley", "lake"),
    },
    adjectives=("", "", "old ", "new ", "small ", "other ", "famous "),
    predicates=(
        "was/were damaged in the storm last winter",
        "is/are hidden from the street by a tall fence",
        "looks/look beautiful in the light of the evening",
        "has/have not changed much in the last ten years",
        "is/are visible from the other side of the valley",
        "needs/need a lot of work before the summer",
        "was/were much smaller than the guide had promised",
        "belongs/belong to a family from the next town",
        "appears/appear in several paintings from that period",
        "attracts/attract a lot of attention from the tourists",
        "has/have been there for more than a hundred years",
        "is/are going to be restored in the spring",
        "does/do not appear on any map of the region",
        "was/were photographed for a magazine last year",
    ),
)

PEOPLE = (
    "coach/coaches",
    "nurse",
    "pilot",
    "farmer",
    "lawyer",
    "singer",
    "waiter",
    "gardener",
    "painter",
    "teacher",
    "baker",
    "dancer",
    "doctor",
    "driver",
    "editor",
    "actor",
    "clerk",
    "guard",
    "sailor",
    "student",
    "tailor",
    "writer",
    "player",
    "manager",
    "customer",
    "neighbour",
    "visitor",
    "officer",
)
PERSON_PREDICATES = (
    "is/are going to miss the last train home",
    "was/were late for the meeting on Monday",
    "has/have decided to stay until the end of the month",
    "lives/live in a small town near the coast",
    "knows/know a great deal about the history of the valley",
    "wants/want to move to a quieter part of the city",
    "does/do not like the food at the new restaurant",
    "enjoys/enjoy long walks in the hills on Sunday",
    "plays/play chess in the park every Saturday afternoon",
    "speaks/speak three languages without any difficulty",
    "seems/seem tired after the long journey from the north",
    "works/work late on most days of the week",
    "has/have never been to a concert before",
    "was/were happy to see the first snow of the year",
    "is/are hoping for better weather next week",
    "takes/take the bus to the office every morning",
)
PEOPLE_FROM = {
    "from": ("village", "factory/factories", "hotel", "team"),
    "behind": ("counter", "curtain", "barrier"),
    "near": ("entrance", "exit", "window", "gate"),
}

DEEDS = (
    "thanked",
    "praised",
    "helped",
    "met",
    "visited",
    "followed",
    "recognised",
    "trusted",
    "hired",
    "remembered",
    "interrupted",
    "admired",
    "avoided",
    "called",
)
OCCASIONS = {
    "after": ("show", "lesson", "concert", "interview"),
    "before": ("meeting", "match/matches", "exam", "wedding"),
    "during": ("storm", "break", "strike", "festival"),
    "near": ("station", "fountain", "market", "library/libraries"),
}

OUTCOMES = (
    "was/were invited to dinner the same evening",
    "was/were late for work because of it",
    "has/have talked about it ever since",
    "has/have been in a good mood ever since that day",
    "was/were paid for it the following week",
    "is/are still proud of it after all these years",
    "was/were back home again before midnight",
    "has/have not said a word about it since",
    "is/are planning to do the same next year",
    "was/were mentioned in the newspaper the next day",
    "has/have regretted it more than once since then",
    "is/are now waiting for an answer from the mayor",
)

MENTIONS = ("had described", "had asked for", "had seen", "talked about", "remembered")

SEARCHES = (
    "Nobody could find",
    "We had forgotten about",
    "She was looking for",
    "He never mentioned",
    "They talked about",
    "I still remember",
    "Somebody must have taken",
    "The manager asked for",
    "The visitors laughed at",
    "We were surprised by",
)
DETERMINERS = ("this/these", "that/those")
DESCRIPTIONS = (
    "rather dusty",
    "small and plain",
    "strange",
    "slightly damaged",
    "very ordinary",
    "beautiful but expensive",
    "surprisingly cheap",
    "small yellow",
    "rather ugly",
    "completely useless",
    "carefully wrapped",
    "almost forgotten",
    "very heavy",
)
MEASURES = ("year-old", "dollar", "colour")
LATER = (
    "at the end of the day",
    "after the meeting",
    "on the way home",
    "at the start of the week",
    "before the holidays",
    "during the long weekend",
)

MEN = ("king", "boy", "uncle", "father", "prince", "brother", "man/men", "grandfather", "nephew")
WOMEN = ("queen", "girl", "aunt", "mother", "lady/ladies", "sister", "woman/women", "grandmother")
ORDERS = ("asked", "told", "advised", "ordered", "begged", "encouraged", "forced", "allowed")
REFLEXIVE_PREDICATES = {
    "blame/blamed": ("for the trouble that followed", "for the delay of the whole trip"),
    "introduce/introduced": ("to everyone else in the room", "to the new owner of the house"),
    "defend/defended": ("against the complaints in the newspaper", "in a speech to the town"),
    "prepare/prepared": ("for the long winter in the mountains", "for the worst news of the year"),
    "describe/described": ("in a long letter to the newspaper", "as honest and hard to fool"),
    "remind/reminded": ("of the promise from the week before", "to lock the door of the cellar"),
    "protect/protected": ("from the rain with an old blanket", "from the cold wind on the bridge"),
    "treat/treated": ("to a large slice of chocolate cake", "to a quiet weekend by the sea"),
    "hide/hid": ("behind the curtain until the morning", "in the kitchen until the noise stopped"),
    "watch/watched": ("on the evening news the next day", "in the large mirror behind the bar"),
    "amuse/amused": ("with a game of cards after dinner", "with stories about the old days"),
}

SPOTS = {
    "on": ("shelf/shelves", "table", "counter", "tray", "bench/benches", "desk"),
    "under": ("window", "staircase", "bed", "bench/benches", "sink", "painting"),
    "behind": ("door", "curtain", "oven", "sofa", "counter", "screen"),
    "next to": ("bed", "fireplace", "door", "cupboard", "stove", "mirror"),
}
SPOT_ADJECTIVES = ("", "old ", "wooden ", "new ", "small ", "broken ")
ROOMS = ("kitchen", "cellar", "attic", "office", "bedroom", "classroom", "waiting room", "studio")
CONTENTS = (
    "jar of honey",
    "bottle of cold milk",
    "bowl of fresh fruit",
    "box of old letters/boxes of old letters",
    "basket of clean towels",
    "pile of new books",
    "vase of yellow flowers",
    "tin of green paint",
    "bag of brown flour",
    "stack of old magazines",
    "bucket of warm water",
    "roll of brown paper",
)
STANDING = ("stands/stand", "lies/lie", "sits/sit", "is/are")
BEING = ("is/are", "was/were", "seems/seem to be", "appears/appear to be")
PURPOSES = ("for the guests", "from the market", "for the neighbours", "from last year")

SINGULAR_SHARES = ("One", "Each", "Only one", "Every single one")
PLURAL_SHARES = ("Several", "Many", "Some", "Most", "A few", "At least two")
EXCEPTIONS = ("unlike", "just like", "in contrast to", "much like")
