"""Long work that may be cut short: finished steps stand beside the result until it is whole.

A stage that writes `runs/demo` keeps its steps in `runs/.demo.steps`: one safetensors file a step,
written aside and renamed, so that a step is either finished or absent. Started again with the same
model, data and configuration it goes on after the last one, with the same result to the bit; the
folder goes when the result stands.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from layerif.errors import InputError, NumericalError
from layerif.progress import note
from layerif.runs import new_file, read_json, refuse_existing, write_json

if TYPE_CHECKING:
    import torch

FINGERPRINT_FILE = "fingerprint.json"
LOCK_FILE = "lock"
# Never fill a disk to the brim: others write there too.
DISK_MARGIN = 1.1


@dataclass(frozen=True)
class Fingerprint:
    """What a stage's result depends on, by part, so that a mismatch can say which part differs.

    Attributes:
        model: hash of all weights and of the configuration.
        data: hash of the texts.
        options: the stage's parameters, plain JSON values.
    """

    model: str
    data: str
    options: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        # Through JSON once, so that tuples and the like compare equal to what is read back; NaN, no
        # part of JSON, becomes a word here and is refused by whom it concerns.
        value = {"model": self.model, "data": self.data, "options": self.options}
        plain: dict[str, Any] = json.loads(json.dumps(value), parse_constant=str)
        return plain


class Steps(Protocol):
    """Where a stage keeps what it has finished."""

    def load(self, step: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a finished step; None where it is still to do."""

    def save(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep a finished step."""

    def reserve(self, size: int) -> None:
        """Refuse beforehand to write `size` bytes of steps where there is no room for them."""


class NoSteps:
    """Keeps nothing: for work in memory, and for work too short to resume."""

    def load(self, step: str) -> None:
        return None

    def save(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        pass

    def reserve(self, size: int) -> None:
        pass


class DiskSteps:
    """Steps as files of one folder; made by `resumable`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, step: str) -> dict[str, torch.Tensor] | None:
        from safetensors.torch import load_file

        path = self._path(step)
        return load_file(path) if path.is_file() else None

    def save(self, step: str, tensors: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        with new_file(self._path(step)) as part:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)

    def reserve(self, size: int) -> None:
        present = sum(path.stat().st_size for path in self._folder.glob("*.safetensors"))
        free = shutil.disk_usage(self._folder).free
        missing = max(0, size - present)
        if missing * DISK_MARGIN > free:
            raise InputError(
                f"the steps of this run take {missing / 1e9:.1f} GB of disk beside "
                f"{self._folder.parent}, where {free / 1e9:.1f} GB are free; make room, or choose "
                "another --out"
            )

    def _path(self, step: str) -> Path:
        return self._folder / f"{step}.safetensors"


def steps_folder(out: Path) -> Path:
    """Where the steps of the stage that writes `out` are kept."""
    out = out.absolute()
    return out.with_name(f".{out.name}.steps")


@contextmanager
def resumable(out: Path, fingerprint: Fingerprint, *, restart: bool = False) -> Iterator[DiskSteps]:
    """Keep the steps of the stage that writes `out`; they go when the block ends without an error.

    Only one process at a time can hold them; the operating system frees the lock of a killed one.

    Args:
        out: the file or folder that the stage will write.
        fingerprint: what the result depends on.
        restart: throw away steps of another fingerprint instead of refusing.

    Raises:
        InputError: another process is at it, or the steps that stand there are of other work,
            saying which part differs.
    """
    from filelock import FileLock, Timeout

    folder = steps_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another process is writing {out} at this moment (it holds {folder / LOCK_FILE}); "
            "wait for it, or choose another --out"
        ) from None
    with lock:
        try:
            _match(folder, out, fingerprint, restart=restart)
            yield DiskSteps(folder)
        except NumericalError:
            # It would come out the same again: there is nothing to go on with.
            shutil.rmtree(folder)
            raise
        except BaseException:
            if not any(folder.glob("*.safetensors")):
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def check_out(out: Path, finished: Path, *, overwrite: bool) -> None:
    """Before any work: may `out` be written, or go on being written?

    Args:
        out: the file or folder to write.
        finished: the file or folder whose presence says that `out` is whole.
        overwrite: whether what `out` holds may be replaced.

    Raises:
        InputError: `out` holds something, and it is not an unfinished run.
    """
    if finished.exists():
        remove_leftover(out)
    elif steps_folder(out).is_dir():
        return
    refuse_existing(out, overwrite=overwrite)


def remove_leftover(out: Path) -> None:
    """Remove steps that were left beside a finished result, unless a process is at them."""
    from filelock import FileLock, Timeout

    folder = steps_folder(out)
    if folder.is_dir():
        try:
            with FileLock(folder / LOCK_FILE, timeout=0):
                shutil.rmtree(folder)
        except Timeout:
            pass


def _match(folder: Path, out: Path, fingerprint: Fingerprint, *, restart: bool) -> None:
    path = folder / FINGERPRINT_FILE
    wanted = fingerprint.as_json()
    if path.is_file():
        found = read_json(path, "the fingerprint of an unfinished run")
        if found == wanted:
            steps = len(list(folder.glob("*.safetensors")))
            note(f"resuming: {steps} finished steps of {out} found")
            return
        if not restart and any(folder.glob("*.safetensors")):
            raise InputError(
                f"an unfinished run stands beside {out}, but {differences(found, wanted)}; run "
                "it as it was begun to finish it, pass --overwrite to begin anew, or choose "
                "another --out"
            )
    for stale in folder.glob("*.safetensors"):
        stale.unlink()
    write_json(path, wanted)


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Which parts of two fingerprints differ, in words; options by their dotted names."""
    parts = [
        f"the {part} {'was' if part == 'model' else 'were'} another then"
        for part in ("model", "data")
        if found.get(part) != wanted[part]
    ]
    before, now = _flat(found.get("options", {})), _flat(wanted["options"])
    parts += [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return ", ".join(parts) or "it was begun by another version"


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def hash_texts(texts: Sequence[Any]) -> str:
    """SHA-256 of texts, or of any plain JSON values, and of their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def hash_model(model: Any) -> str:
    """SHA-256 of a model's class, configuration and weights: name, dtype, shape and bytes."""
    import torch

    digest = hashlib.sha256(type(model).__name__.encode())
    settings = model.config.to_dict()
    settings.pop("_name_or_path", None)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()
