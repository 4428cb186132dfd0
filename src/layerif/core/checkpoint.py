"""Long work that may be cut short: finished steps lie beside the result until it is whole.

A stage that writes `runs/demo` keeps its steps in `runs/.demo.steps`: one safetensors file a step,
written aside and renamed, so that a step is either finished or absent; one that is not as it was
written counts as absent. Started again with the same model, data and configuration it goes on after
the last one, with the same result to the bit; the folder goes when the result exists.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from layerif.core import processes
from layerif.core.files import (
    RECIPE_FILE,
    Kind,
    check_place,
    check_target,
    disk_error,
    load_tensors,
    read_json,
    recipe_path,
    require_disk,
    save_tensors,
    sweep,
    taken,
    target,
    writing_to,
)
from layerif.core.fingerprint import Fingerprint, hash_texts
from layerif.core.progress import note
from layerif.errors import InputError, NumericalError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

FINGERPRINT_FILE = "fingerprint.json"
LOCK_FILE = "lock"
# In a folder of several results: for which command, and with which hashes plans were written.
STUDY_FILE = "written.json"
# Seconds until a file shows on every machine: network disks remember for up to a minute that it
# was not there.
VISIBLE_WITHIN = 90.0


class Steps:
    """Where a stage keeps what it has finished: a file a step, in a folder made by `resumable`.

    Attributes:
        folder: also for files too large to be a step of their own. None where nothing is kept, for
            work in memory or too short.
    """

    folder: Path | None = None
    _kind = ""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def of_kind(self, *kind: Any) -> Self:
        """The same place for work of one kind; a step of another kind counts as absent.

        Args:
            kind: plain JSON values that the steps depend on beside the fingerprint of the stage.
        """
        own = copy(self)
        own._kind = hash_texts([self._kind, *kind])
        return own

    def load(self, step: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a finished step; None where it is still to do, or damaged."""
        if self.folder is None:
            return None
        path = _path(self.folder, step)
        kept = load_tensors(path, self._kind)
        if kept is None and path.exists():
            note(f"{path} is damaged, or of work done in another way: computed again")
        return kept

    def awaited(
        self, step: str, wanted: Callable[[dict[str, torch.Tensor]], bool] = lambda _kept: True
    ) -> dict[str, torch.Tensor]:
        """Those of a step that another process has finished, once it shows here.

        Args:
            wanted: tells it from an earlier one.
        """
        if self.folder is None:
            raise InputError(f"the step {step} is not kept, so no other process can take it")
        path = _path(self.folder, step)

        def read() -> dict[str, torch.Tensor] | None:
            kept = load_tensors(path, self._kind)
            return kept if kept is not None and wanted(kept) else None

        return _awaited(path, read)

    def save(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep a finished step; one that is there is replaced."""
        if self.folder is not None:
            save_tensors(_path(self.folder, step), tensors, self._kind)

    def reserve(self, size: float, what: str, of: str = "*") -> None:
        """Refuse beforehand to write `size` bytes where there is no room for them.

        Args:
            size: of all of it, whatever is there already.
            what: takes the room, for the error.
            of: pattern of the names of what is there already and counts.
        """
        if self.folder is not None:
            require_disk(self.folder, size - sum(map(taken, self.folder.glob(of))), what)


NO_STEPS = Steps()


def _path(folder: Path, step: str) -> Path:
    return folder / f"{step}.safetensors"


def steps_folder(out: Path) -> Path:
    """Where the steps of the stage that writes `out` are kept: on its disk, links followed."""
    place = target(out)
    return place.with_name(f".{place.name}.steps")


@contextmanager
def alone(lock: Path, out: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock that one process at a time can have; the system frees that of a killed one.

    Args:
        lock: its file.
        out: what the lock guards, for the message.
        wait: wait for another process to be done, instead of refusing.

    Raises:
        InputError: another process holds it.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    waited = False
    while not held.is_locked:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if isinstance(error, FileExistsError) and not os.path.lexists(lock.parent):
                continue  # it went while mkdir looked at it
            raise disk_error(error, lock) from error
        try:
            held.acquire(timeout=-1 if waited else 0)
        except Timeout:
            if not wait:
                raise InputError(
                    f"another process is writing {out} at this moment (it holds {lock}); "
                    "wait for it, or choose another place"
                ) from None
            note(f"another process is writing {out}; waiting for it")
            waited = True
        except (FileNotFoundError, FileExistsError):
            pass  # the other was done at this moment, and its folder went
        except OSError as error:
            raise disk_error(error, lock) from error
    try:
        yield
    finally:
        held.release()


@contextmanager
def resumable(
    out: Path,
    fingerprint: Fingerprint,
    *,
    restart: bool = False,
    wait: bool = False,
    together: bool = False,
) -> Iterator[Steps]:
    """Keep the steps of the stage that writes `out`; they go when the block ends without an error.

    Args:
        out: the file or folder that the stage will write.
        fingerprint: what the result depends on.
        restart: throw away steps of another fingerprint instead of refusing.
        wait: wait for a process that works on it, instead of refusing.
        together: every process that was started with this one comes here, for the same work; the
            first holds the lock for all.

    Raises:
        InputError: another process works on it, or the steps there are from different settings;
            says which part differs.
    """
    folder = steps_folder(out)
    if together and processes.count() > 1:
        with ExitStack() as held:
            kept = resumable(out, fingerprint, restart=restart, wait=wait)
            processes.agreed(lambda: held.enter_context(kept) and None)  # in the first process
            path = folder / FINGERPRINT_FILE
            _awaited(path, lambda: path.is_file() or None)
            yield Steps(folder)
            processes.barrier()
        return
    with alone(folder / LOCK_FILE, out, wait=wait):
        try:
            _match(folder, out, fingerprint, restart=restart)
            yield Steps(folder)
        except NumericalError as error:
            if not error.keeps_steps:
                # The result would be the same again, so the steps are of no use.
                _remove(folder)
            raise
        except BaseException:
            if not any(folder.glob("*.safetensors")):
                _remove(folder)
            raise
        _remove(folder)


def _awaited(path: Path, read: Callable[[], T | None]) -> T:
    """What another process has written: a network disk shows it a little later.

    Args:
        path: of the file, for the error.
        read: returns None until the file shows.

    Raises:
        InputError: it does not come; so the folder is not one that all processes see.
    """
    end = time.monotonic() + VISIBLE_WITHIN
    while (found := read()) is None:
        if time.monotonic() > end:
            raise InputError(
                f"process {processes.rank()} does not see {path}, which another process has "
                "written; the run folder has to lie on a disk that all machines share"
            )
        time.sleep(0.1)
    return found


def check_out(out: Path, kind: Kind, *, overwrite: bool) -> None:
    """Before any work: may `out` be written, or go on being written?

    What is finished there passes too: only its fingerprint can tell whether it is this very work,
    which the stage itself finds out.

    Args:
        out: the file or folder to write.
        kind: of the result.
        overwrite: whether what `out` holds may be replaced.

    Raises:
        InputError: `out` holds something else, or nothing can be written there.
    """
    folder = bool(kind.mark)
    check_place(out, folder=folder)
    check_place(recipe_path(out, folder=folder), folder=False)
    place = target(out)
    if (study := study_of(place)) is not None:
        raise InputError(f"{out} holds the results of `layerif {study}`; choose another place")
    if processes.is_first():
        sweep(place)
    unfinished = steps_folder(out).is_dir()
    if (finished := kind.is_finished(place)) and processes.is_first():
        remove_leftover(out)
    if overwrite or not finished:
        check_target(out, kind, overwrite=overwrite or unfinished, mixed=unfinished)


def study_of(folder: Path) -> str | None:
    """The command whose results a folder is claimed for, where it is for one of several results."""
    recipe, path = folder / RECIPE_FILE, folder / STUDY_FILE
    command = None
    if recipe.is_file():
        with recipe.open(encoding="utf-8", errors="replace") as file:
            name, _, value = file.readline().partition(": ")
        command = value.strip() if name == "command" else None
    if not path.is_file():
        return command if command == "validate" else None
    written = read_json(path, "the list of plans that a study wrote")
    return str(written.get("study") or command or "run")


def tidy(out: Path) -> None:
    """Remove what dead processes have left beside a finished result."""
    sweep(target(out))
    remove_leftover(out)


def remove_leftover(out: Path) -> None:
    """Remove steps that were left beside a finished result, unless a process works on them."""
    from filelock import FileLock, Timeout

    folder = steps_folder(out)
    if folder.is_dir():
        with (
            suppress(Timeout, FileNotFoundError, FileExistsError),
            FileLock(folder / LOCK_FILE, timeout=0),
        ):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove steps and their folder, the lock last.

    Without its lock the folder may be that of another process, which has waited for this one.
    """
    with writing_to(folder):
        _empty(folder)
        (folder / LOCK_FILE).unlink(missing_ok=True)
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise


def _empty(folder: Path) -> None:
    """Remove all but the lock, the fingerprint first: what a kill leaves is not resumed."""
    (folder / FINGERPRINT_FILE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def _match(folder: Path, out: Path, wanted: Fingerprint, *, restart: bool) -> None:
    """Begin the folder, unless it holds steps of the work that is wanted, or may not be emptied."""
    path, found = folder / FINGERPRINT_FILE, None
    steps = len(list(folder.glob("*.safetensors")))
    if path.exists():
        try:
            found = Fingerprint.load(path)
        except (InputError, OSError) as error:
            note(f"the steps kept in {folder} cannot be used, and are done again: {error}")
    if found == wanted:
        note(f"resuming: {steps} finished steps of {out} found")
        return
    if found is not None and steps and not restart:
        raise InputError(
            f"an unfinished run for {out} is kept in {folder}, and it has other settings: "
            f"{wanted.differences(found)}; finish that one by its own command, pass "
            "overwrite=True to begin again, or choose another place"
        )
    _empty(folder)
    wanted.save(path)
