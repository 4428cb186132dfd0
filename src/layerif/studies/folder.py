"""The folder of a recipe's run: claimed before anything is written, and nobody's edits are lost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerif.artifacts import Allocation
from layerif.checkpoint import alone
from layerif.errors import InputError
from layerif.files import json_text, read_json, write_json, write_text

RECIPE_FILE = "recipe.yaml"
# The plans that the run wrote, which a person may edit, with the hashes they were written with.
WRITTEN_FILE = "written.json"
LOCK_FILE = ".lock"


class RunFolder:
    """One run of a recipe at a time; what it holds may be of an earlier version of the recipe."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def claimed(self, recipe: str | None = None) -> Iterator[None]:
        """Take an empty or absent folder, or one that holds a run, and keep others out.

        Args:
            recipe: its text, which is written there; None where the caller writes it.

        Raises:
            InputError: the folder holds something else, or another process is at it.
        """
        path = self.path
        known = (path / WRITTEN_FILE).is_file()
        if path.exists() and not (known or (path.is_dir() and all(map(_hidden, path.iterdir())))):
            raise InputError(
                f"{path} already holds something that is no run of a recipe; choose another folder "
                "with --out"
            )
        with alone(path / LOCK_FILE, path):
            if not known:
                write_json(path / WRITTEN_FILE, {})
            if recipe is not None:
                write_text(path / RECIPE_FILE, recipe)
            yield

    def keep_plan(self, name: str, plan: Allocation) -> None:
        """Write a plan; one of an earlier version of the recipe gives way to it.

        Raises:
            InputError: the file there was edited since the run wrote it.
        """
        path = self.path / f"{name}.json"
        log = self.path / WRITTEN_FILE
        written = read_json(log, "the list of plans that a run wrote")
        ours = written.get(path.name, [])
        if path.is_file():
            if Allocation.load(path) == plan:
                return
            if hashlib.sha256(path.read_bytes()).hexdigest() not in ours:
                raise InputError(
                    f"{path} is not the plan that this recipe makes, and it was edited; carry it "
                    "out with `layerif prune --plan`, and move it out of this folder"
                )
        # Noted before it is written: killed in between, the plan that stands is still ours.
        text = json_text(plan.model_dump(mode="json")) + "\n"
        write_json(log, {**written, path.name: [*ours, hashlib.sha256(text.encode()).hexdigest()]})
        write_text(path, text)


def _hidden(path: Path) -> bool:
    """What a killed process leaves half-written has such a name."""
    return path.name.startswith(".")
