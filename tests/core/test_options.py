"""Options: one declaration, and what follows from it."""

import inspect
from typing import Annotated, ClassVar

import pytest
from pydantic import Field

from layerif.core.options import ADDED, GIVES_WAY, RESULTS_UNCHANGED, Options, takes
from layerif.core.registry import Registry
from layerif.errors import InputError


class Wide(Options):
    """Options of one function."""

    renamed: ClassVar = {"width": "size"}

    size: Annotated[int, Field(ge=1)] = 32
    """Size of it."""
    place: Annotated[str, RESULTS_UNCHANGED] = "memory"
    """Where it is kept."""
    rows: Annotated[int, GIVES_WAY] = 200
    """Rows of it."""


class Narrow(Options):
    """Options of another, with a default of its own."""

    size: int = 16
    """Size of it."""


class Grown(Wide):
    """Options that became one more after results were made."""

    turned: Annotated[bool, ADDED] = False
    """Whether it is turned."""


@takes(Wide)
def sized(first, *, options, other=1):
    return first, other, options


def test_a_part_has_the_values_of_the_whole_whatever_its_own_defaults():
    assert Wide().part(Narrow).size == 32
    assert Wide(size=16).part(Narrow).size == 16
    assert Wide().part(Wide).left_out() == {"rows"}
    assert Wide(rows=200).part(Wide).left_out() == set()


def test_what_results_do_not_depend_on_is_not_recorded():
    assert Wide(place="disk").recorded() == {"size": 32, "rows": 200}


def test_an_added_option_is_recorded_where_it_differs_from_its_default():
    before = {"size": 32, "rows": 200}
    assert Grown().recorded() == Grown(turned=False).recorded() == before
    assert Grown(turned=True).recorded() == {**before, "turned": True}


def test_a_function_takes_an_object_or_keywords_and_the_keyword_wins():
    assert sized("a") == ("a", 1, Wide())
    assert sized("a", size=4, other=2) == ("a", 2, Wide(size=4))
    assert sized("a", options=Wide(size=4, place="disk"), size=8)[2].values() == {
        "size": 8,
        "place": "disk",
        "rows": 200,
    }
    assert list(inspect.signature(sized).parameters) == [
        *("first", "other", "options"),
        *Wide.model_fields,
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": 0}, "size=0.*at least 1"),
        ({"width": 4}, "called size"),
        ({"sise": 4}, "did you mean size"),
    ],
)
def test_what_is_wrong_is_said_before_the_function_runs(given, says):
    with pytest.raises(InputError, match=says):
        sized("a", **given)
    with pytest.raises(InputError, match=says):
        Wide().but(**given)


def test_a_registry_loads_what_is_asked_for_and_nothing_else():
    own = {"path": "pathlib:Path", "lost": "no.such.module:THING", "one": 1}
    known = Registry("entry", own, facts={"lost": {"far": True}})
    assert known.names() == ["path", "lost", "one"]
    assert known.find("path") is __import__("pathlib").Path
    known.register("two", 2)
    assert (known.find("one"), known.find("two")) == (1, 2)
    assert known.fact("lost", "far", lambda entry: entry.far) is True  # there is nothing to import
    assert known.fact("two", "even", lambda entry: entry % 2 == 0) is True
    with pytest.raises(InputError, match="did you mean path"):
        known.fact("pat", "far", bool)
    for taken in ("path", "lost", "one", "two"):
        with pytest.raises(InputError, match="already"):
            known.register(taken, 3)
    for unfit in ("", "a b", "../up", "--flag"):
        with pytest.raises(InputError, match="cannot be called"):
            known.register(unfit, 3)
    with pytest.raises(InputError, match="did you mean path"):
        known.find("pat")
