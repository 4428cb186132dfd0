"""Names for what users may add to: metrics, estimators, pruners, plans and the like.

An entry that layerif or an installed package brings is the place where it lives, `module:name`, and
is imported when it is asked for, so that names can be listed and checked without it. Packages add
theirs as entry points of the group `layerif.<kinds>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from layerif.core.choices import instead_of
from layerif.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name. As metadata of an option's type it checks the option."""

    def __init__(
        self,
        kind: str,
        own: Mapping[str, str | T],
        *,
        objects: bool = False,
        facts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Name the entries that layerif has.

        Args:
            kind: what an entry is, in the singular.
            own: where each entry lives, `module:name`, or the entry itself.
            objects: whether an option may hold an object of the user's own in place of a name.
            facts: of some of these entries, by name, for `fact` to say without importing them.
        """
        self._objects = objects
        self.facts = facts or {}
        self.kind = kind
        self._own = {name: place for name, place in own.items() if isinstance(place, str)}
        self._registered = {n: entry for n, entry in own.items() if not isinstance(entry, str)}

    @classmethod
    def of(cls, package: str, kind: str, entries: str, **more: Any) -> Registry[T]:
        """A registry of what the modules of a package hold, each under its name in capitals.

        Args:
            package: `__package__` of the caller.
            kind: as above.
            entries: their names, with blanks between them; `module:name` where the module is not
                called like its entry.
            more: as above.
        """
        places = (entry.rpartition(":") for entry in entries.split())
        own = {name: f"{package}.{module or name}:{name.upper()}" for module, _, name in places}
        return cls(kind, own, **more)

    @cached_property
    def _places(self) -> dict[str, EntryPoint]:
        plural = {"corpus": "corpora"}.get(self.kind) or f"{re.sub('y$', 'ie', self.kind)}s"
        group = f"layerif.{plural}".replace(" ", "_")
        added = {point.name: point for point in entry_points(group=group)}
        own = {name: EntryPoint(name, place, group) for name, place in self._own.items()}
        ours = {*own, *self._registered}
        return own | {name: point for name, point in added.items() if name not in ours}

    def register(self, name: str, entry: T) -> None:
        """Give an entry a name, which functions, commands and recipes then take.

        Raises:
            InputError: the name is taken, or is no single word.
        """
        self.require_free(name)
        self._registered[name] = entry

    def require_free(self, name: str) -> None:
        """Refuse a name that is taken, or that commands and folders could not be given.

        Raises:
            InputError: it is.
        """
        if not re.fullmatch(r"\w[^\s/\\]*", name):
            raise InputError(
                f"the {self.kind} cannot be called {name!r}: expected one word that begins with a "
                "letter or digit and has no blanks or slashes"
            )
        if name in self.names():
            raise InputError(f"the {self.kind} {name!r} already exists; choose another name")

    def find(self, name: str) -> T:
        """The entry of a name.

        Raises:
            InputError: there is none; lists those that exist.
        """
        self.check(name)
        if name not in self._registered:
            self._registered[name] = self._places[name].load()
        return self._registered[name]

    def fact(self, name: str, fact: str, read: Callable[[T], Any]) -> Any:
        """What is true of an entry, which is imported only where it is not known without.

        Args:
            fact: what it is called in `facts`.
            read: tells it from the entry.

        Raises:
            InputError: there is no such entry.
        """
        known = self.facts.get(name, {})
        return known[fact] if fact in known else read(self.find(name))

    def module_of(self, name: str) -> str | None:
        """The module that an entry lives in, without importing it; None for an object at hand."""
        return self._places[name].module if name in self._places else None

    def names(self) -> list[str]:
        """Every name, those of layerif first."""
        return list(dict.fromkeys((*self._places, *self._registered)))

    def check(self, name: str) -> str:
        """Refuse a name that nothing has.

        Raises:
            InputError: nothing has it; lists the names that exist.
        """
        if name not in (known := self.names()):
            raise InputError(f"there is no {self.kind} {name!r}; {instead_of(name, known)}")
        return name

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        def checked(name: Any) -> Any:
            if self._objects and not isinstance(name, str):
                return name
            try:
                return self.check(name)
            except InputError as error:
                raise ValueError(str(error)) from None

        return core_schema.no_info_after_validator_function(checked, handler(source))
