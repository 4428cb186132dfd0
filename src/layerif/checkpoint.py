"""Long work that may be cut short: finished steps stand beside the result until it is whole.

A stage that writes `runs/demo` keeps its steps in `runs/.demo.steps`: one safetensors file a step,
written aside and renamed, so that a step is either finished or absent. Started again with the same
model, data and configuration it goes on after the last one, with the same result to the bit; the
folder goes when the result stands.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from layerif import processes
from layerif.artifacts import Fingerprint
from layerif.errors import InputError, NumericalError
from layerif.files import new_file, refuse_existing, require_disk
from layerif.progress import note

if TYPE_CHECKING:
    import torch

FINGERPRINT_FILE = "fingerprint.json"
LOCK_FILE = "lock"
# Seconds until a file shows on every machine: network disks remember for up to a minute that it
# was not there.
VISIBLE_WITHIN = 90.0


class Steps(Protocol):
    """Where a stage keeps what it has finished."""

    @property
    def folder(self) -> Path | None:
        """For files too large to be a step of their own; None where nothing is kept."""

    def load(self, step: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a finished step; None where it is still to do."""

    def await_step(self, step: str) -> None:
        """Wait until a step that another process has finished shows here."""

    def save(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep a finished step; one that stands is replaced."""

    def reserve(self, size: int) -> None:
        """Refuse beforehand to write `size` bytes of steps where there is no room for them."""


class NoSteps:
    """Keeps nothing: for work in memory, and for work too short to resume."""

    folder: Path | None = None

    def load(self, step: str) -> None:
        return None

    def await_step(self, step: str) -> None:
        pass

    def save(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        pass

    def reserve(self, size: int) -> None:
        pass


NO_STEPS = NoSteps()


class DiskSteps:
    """Steps as files of one folder; made by `resumable`."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = folder
        self._folder = folder

    def load(self, step: str) -> dict[str, torch.Tensor] | None:
        from safetensors.torch import load_file

        path = self._path(step)
        return load_file(path) if path.is_file() else None

    def await_step(self, step: str) -> None:
        awaited(self._path(step))

    def save(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        with new_file(self._path(step)) as part:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)

    def reserve(self, size: int) -> None:
        present = sum(path.stat().st_blocks * 512 for path in self._folder.iterdir())
        require_disk(self._folder, size - present, "the steps of this run")

    def _path(self, step: str) -> Path:
        return self._folder / f"{step}.safetensors"


def steps_folder(out: Path) -> Path:
    """Where the steps of the stage that writes `out` are kept."""
    out = out.absolute()
    return out.with_name(f".{out.name}.steps")


@contextmanager
def alone(lock: Path, out: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock that one process at a time can have; the system frees that of a killed one.

    Args:
        lock: the file that stands for it.
        out: what the lock guards, for the message.
        wait: wait for another process to be done, instead of refusing.

    Raises:
        InputError: another process holds it.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    waited = False
    while not held.is_locked:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=-1 if waited else 0)
        except Timeout:
            if not wait:
                raise InputError(
                    f"another process is writing {out} at this moment (it holds {lock}); "
                    "wait for it, or choose another --out"
                ) from None
            note(f"another process is writing {out}; waiting for it")
            waited = True
        except FileNotFoundError:
            pass  # the other was done at this moment, and its folder went
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
) -> Iterator[DiskSteps]:
    """Keep the steps of the stage that writes `out`; they go when the block ends without an error.

    Args:
        out: the file or folder that the stage will write.
        fingerprint: what the result depends on.
        restart: throw away steps of another fingerprint instead of refusing.
        wait: wait for a process that is at it, instead of refusing.
        together: every process that was started with this one comes here, for the same work; the
            first holds the lock for all.

    Raises:
        InputError: another process is at it, or the steps that stand there are of other work,
            saying which part differs.
    """
    folder = steps_folder(out)
    if together and processes.count() > 1:
        with _together(out, fingerprint, restart=restart, wait=wait):
            yield DiskSteps(folder)
        return
    with alone(folder / LOCK_FILE, out, wait=wait):
        try:
            _match(folder, out, fingerprint, restart=restart)
            yield DiskSteps(folder)
        except NumericalError:
            # It would come out the same again: there is nothing to go on with.
            _remove(folder)
            raise
        except BaseException:
            if not any(folder.glob("*.safetensors")):
                _remove(folder)
            raise
        _remove(folder)


@contextmanager
def _together(out: Path, fingerprint: Fingerprint, *, restart: bool, wait: bool) -> Iterator[None]:
    """`resumable` in the first of several processes; the others begin and end with it."""
    folder = steps_folder(out)
    with ExitStack() as held:
        if processes.is_first():
            kept = resumable(out, fingerprint, restart=restart, wait=wait)
            processes.agreed(lambda: held.enter_context(kept) and None)
        else:
            processes.agreed(lambda: None)
            awaited(folder / FINGERPRINT_FILE)
        yield
        processes.barrier()


def awaited(path: Path) -> None:
    """Wait for a file that another process has written: a network disk shows it a little later.

    Raises:
        InputError: it does not come; so the folder is not one that all processes see.
    """
    end = time.monotonic() + VISIBLE_WITHIN
    while not path.is_file():
        if time.monotonic() > end:
            raise InputError(
                f"process {processes.rank()} does not see {path}, which another process has "
                "written; the run folder (--out) has to lie on a disk that all machines share"
            )
        time.sleep(0.1)


def check_out(out: Path, finished: Path, *, overwrite: bool) -> None:
    """Before any work: may `out` be written, or go on being written?

    What is finished there passes too: only its fingerprint can tell whether it is this very work,
    which the stage itself finds out.

    Args:
        out: the file or folder to write.
        finished: the file whose presence says that `out` is whole.
        overwrite: whether what `out` holds may be replaced.

    Raises:
        InputError: `out` holds something else.
    """
    if finished.is_file():
        if processes.is_first():
            remove_leftover(out)
    elif not steps_folder(out).is_dir():
        refuse_existing(out, overwrite=overwrite)


def remembered(
    folder: Path,
    fingerprint: Fingerprint,
    compute: Callable[[Steps], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """What `compute` returns, taken from `folder` where it was computed before.

    Cut short, it goes on after its last step; a process that wants the same at the same time waits
    for the first.

    Args:
        folder: of such results, a file each.
        fingerprint: all that the tensors depend on.
        compute: does the work, keeping its steps.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    path = folder / f"{fingerprint.digest()}.safetensors"

    def stored() -> dict[str, torch.Tensor] | None:
        try:
            return load_file(path) if path.is_file() else None
        except SafetensorError:
            return None  # damaged, by a full disk say: computed anew

    found = stored()
    if found is None:
        with resumable(path, fingerprint, wait=True) as steps:
            found = stored()  # another process may have been faster
            if found is None:
                found = compute(steps)
                with new_file(path) as part:
                    save_file(found, part)
    return found


def remove_leftover(out: Path) -> None:
    """Remove steps that were left beside a finished result, unless a process is at them."""
    from filelock import FileLock, Timeout

    folder = steps_folder(out)
    if folder.is_dir():
        try:
            with FileLock(folder / LOCK_FILE, timeout=0):
                _remove(folder)
        except Timeout:
            pass


def _remove(folder: Path) -> None:
    """Remove steps and their folder, the lock last.

    Without its lock the folder may be that of another process, which has waited for this one.
    """
    _empty(folder)
    (folder / LOCK_FILE).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def _empty(folder: Path) -> None:
    """Remove all but the lock, the fingerprint first: what a kill leaves is not gone on with."""
    (folder / FINGERPRINT_FILE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def _match(folder: Path, out: Path, wanted: Fingerprint, *, restart: bool) -> None:
    path = folder / FINGERPRINT_FILE
    if path.is_file():
        found = Fingerprint.load(path)
        if found == wanted:
            steps = len(list(folder.glob("*.safetensors")))
            note(f"resuming: {steps} finished steps of {out} found")
            return
        if not restart and any(folder.glob("*.safetensors")):
            raise InputError(
                f"an unfinished run for {out} stands in {folder}, and it is of other work: "
                f"{wanted.differences(found)}; finish that one by its own command, pass "
                "--overwrite to begin anew, or choose another --out"
            )
    _empty(folder)
    wanted.save(path)
