"""The folder of a run or a comparison: claimed before anything is written; no edit is lost."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerif.artifacts import Plan
from layerif.core.checkpoint import STUDY_FILE, alone, study_of
from layerif.core.files import (
    RECIPE_FILE,
    check_place,
    json_text,
    keep_recipe,
    read_json,
    sweep,
    target,
    write_json,
    write_text,
)
from layerif.errors import InputError

FORMAT = "layerif.study/1"
LOCK_FILE = ".lock"
# What a folder holds before the first result.
_CLAIM = {STUDY_FILE, RECIPE_FILE, LOCK_FILE}


class RunFolder:
    """One run of one study at a time; what it holds may be of an earlier version of the recipe.

    Args:
        study: the command whose results the folder is for.
    """

    def __init__(self, path: Path, study: str = "run") -> None:
        self.path, self._study = path, study

    def check(self) -> None:
        """Before any work: is the folder absent, empty, or this study's own?

        Raises:
            InputError: it holds something else, or nothing can be written there.
        """
        check_place(self.path, folder=True)
        place = target(self.path)
        study = study_of(place)
        empty = not place.exists() or (place.is_dir() and all(map(_hidden, place.iterdir())))
        if study not in (None, self._study) or (study is None and not empty):
            holds = "other files" if study is None else f"the results of `layerif {study}`"
            raise InputError(
                f"{self.path} already holds {holds}, and not those of `layerif {self._study}`; "
                "choose another folder"
            )

    @contextmanager
    def claimed(self, recipe: str | None = None) -> Iterator[None]:
        """Take the folder, and keep others out.

        Args:
            recipe: its text, which is written there; None where the caller writes it.

        Raises:
            InputError: as `check`; or another process uses it, or its recipe was edited.
        """
        self.check()
        place = target(self.path)
        lock, new = place / LOCK_FILE, not place.exists()
        with alone(lock, self.path):
            try:
                self._write(self._plans())
                if recipe is not None:
                    keep_recipe(self.path / RECIPE_FILE, recipe)
                yield
            except BaseException:
                # Refused or stopped before its first result, it leaves no folder.
                if new and {path.name for path in place.iterdir()} <= _CLAIM:
                    shutil.rmtree(place)
                raise
            finally:
                lock.unlink(missing_ok=True)

    def _plans(self) -> dict[str, list[str]]:
        """The plans that the study wrote, with the hashes of their files."""
        path = self.path / STUDY_FILE
        if not path.is_file():
            return {}
        written = read_json(path, "the list of plans that a study wrote")
        return dict(written["plans"] if "study" in written else written)

    def _write(self, plans: dict[str, list[str]]) -> None:
        value = {"format": FORMAT, "study": self._study, "plans": plans}
        write_json(self.path / STUDY_FILE, value)

    def keep_plan(self, name: str, plan: Plan) -> None:
        """Write a plan; one of an earlier version of the recipe gives way to it.

        Raises:
            InputError: the file there was edited since the run wrote it.
        """
        path = self.path / f"{name}.json"
        sweep(target(path))
        written = self._plans()
        ours = written.get(path.name, [])
        if path.is_file():
            if Plan.load(path) == plan:
                return
            if hashlib.sha256(path.read_bytes()).hexdigest() not in ours:
                raise InputError(
                    f"{path} is not the plan that this recipe makes, and it was edited; carry it "
                    "out with `layerif prune --plan`, and move it out of this folder"
                )
        # Noted before it is written: killed in between, the plan that is there is still ours.
        text = json_text(plan.model_dump(mode="json")) + "\n"
        hashed = hashlib.sha256(text.encode()).hexdigest()
        self._write({**written, path.name: [*ours, hashed]})
        write_text(path, text)


def _hidden(path: Path) -> bool:
    """What a killed process leaves half-written has such a name."""
    return path.name.startswith(".")
