"""Tasks and corpora by name: those of this package, and any that a user registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from layerif.core.registry import Registry
from layerif.data.base import NamedTask, Task
from layerif.data.catalogue import CATALOGUE
from layerif.data.corpora import SELF, Corpus, NamedCorpus
from layerif.data.styles import Request
from layerif.errors import InputError

T = TypeVar("T")
_HERE = "layerif.data"


class SourceRegistry(Registry[T]):
    """A registry beside whose names an option takes files, so it is checked when it is loaded."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return handler(source)


TASKS: SourceRegistry[NamedTask] = SourceRegistry(
    "task",
    {
        "agreement": f"{_HERE}.agreement:AGREEMENT",
        "facts": f"{_HERE}.facts:FACTS",
        **{name: spec.named() for name, spec in CATALOGUE.items()},
    },
)
CORPORA: SourceRegistry[NamedCorpus] = SourceRegistry(
    "corpus",
    {
        "python-docs": f"{_HERE}.corpora:PYTHON_DOCS",
        "wikitext2": f"{_HERE}.corpora:WIKITEXT2",
    },
)


def register_task(
    name: str,
    load: Callable[[Request], Task],
    *,
    asks: str = "",
    candidates: str = "",
    continues: bool = False,
) -> None:
    """Give a task a name: `load_task`, commands and recipes then know it.

    Args:
        name: not taken yet.
        load: makes the task from a `layerif.data.styles.Request`: its `seed`, its `data_dir`, and
            `request.render(instruction)`, which is the prompt in the style that is asked for.
        asks: what it asks, in a few words.
        candidates: how many answers a row offers.
        continues: the prompts are texts to go on with and not instructions, so styles do not
            change them.

    Raises:
        InputError: the name is taken, or is no single word.
    """
    _require_free(name)
    TASKS.register(name, NamedTask(load, asks, "registered", candidates, continues))


def register_corpus(name: str, load: Callable[[Request], Corpus], *, holds: str = "") -> None:
    """Give a corpus a name: `load_corpus`, commands and recipes then know it.

    Args:
        name: not taken yet.
        load: makes the corpus from a `layerif.data.styles.Request`: its `seed` and `data_dir`.
        holds: what it holds, in a few words.

    Raises:
        InputError: the name is taken, or is no single word.
    """
    _require_free(name)
    CORPORA.register(name, NamedCorpus(load, holds, "registered"))


def _require_free(name: str) -> None:
    """Tasks, corpora and `self` may be asked for in one place, so no two have one name."""
    if name in (SELF, *TASKS.names(), *CORPORA.names()):
        raise InputError(f"a task or corpus {name!r} already exists; choose another name")
