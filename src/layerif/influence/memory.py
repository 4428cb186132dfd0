"""Where gradients shall be kept, chosen beforehand from what they take and what there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from layerif.core import processes
from layerif.core.choices import Keep
from layerif.core.files import has_room, require_disk, taken
from layerif.core.progress import note
from layerif.errors import InputError
from layerif.influence.estimators.base import EstimatorOptions
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.influence.preparing import Prepared
from layerif.influence.store import FILE

# Never all that is free: the model's own activations and others' processes want some.
SHARE = 0.9


@dataclass(frozen=True)
class Need:
    """What scoring takes.

    Attributes:
        gradients: bytes of the training samples' gradients.
        workspace: bytes that the estimator takes beside them, in its largest block.
        free: bytes of memory that may be used.
        written: bytes of the gradients that lie on disk already, from a run that was cut short.
    """

    gradients: int
    workspace: int
    free: float
    written: int = 0

    @property
    def to_write(self) -> int:
        """Bytes of disk that keeping the gradients there still takes."""
        return self.gradients - self.written


def choose(
    work: Prepared, folder: Path | None, solver: EstimatorOptions | None = None, workspace: int = 0
) -> Keep:
    """Where gradients are kept: `memory`, `disk`, or nowhere (`passes`); says so with the estimate.

    With `auto`, a run folder keeps them on disk, where they are written anyway so that the run can
    go on after an interruption, and the system holds in memory what there is room for. Without one
    they stay in memory where they fit. What has room nowhere is computed again in several passes.

    It is decided once for all processes, since each sees other memory free.

    Args:
        work: whose gradients; with its options, where they were asked to be.
        folder: of the run's steps; None without a run folder.
        solver: the estimator, which has to have a form in passes for that; None where gradients are
            only collected.
        workspace: bytes that it takes beside the gradients.

    Raises:
        InputError: it cannot be done so; says what is expected.
    """
    return processes.agreed(lambda: _choose(work, folder, solver, workspace))


def _choose(
    work: Prepared, folder: Path | None, solver: EstimatorOptions | None, workspace: int
) -> Keep:
    keep, memory, samples = work.options.keep, work.options.memory, work.record.train_samples
    numbers = sum(matrix.size for matrix in work.matrices)
    free = SHARE * psutil.virtual_memory().available if memory is None else memory * 1e9
    written = 0 if folder is None else taken(folder / FILE)
    need = Need(samples * numbers * work.dtype.itemsize, workspace, free, written)
    if not work.formed and keep not in ("auto", "passes"):
        raise InputError(
            "the gradients of full weights are never formed, so they cannot be kept; use "
            "keep='auto', or another subspace"
        )
    if solver is not None and need.workspace > need.free and keep != "passes":
        raise InputError(
            f"the estimator {solver.name} takes {need.workspace / 1e9:.1f} GB for the matrices of "
            f"one block of {samples} training samples, and {need.free / 1e9:.1f} GB may be used; "
            "use fewer samples or a smaller subspace, or an estimator without such matrices: "
            "datainf or cg"
        )
    chosen = keep
    if keep == "auto":
        chosen = _automatic(need, folder, formed=work.formed)
    if chosen == "memory" and need.gradients + need.workspace > need.free:
        raise InputError(
            f"the gradients of {samples} training samples take {need.gradients / 1e9:.1f} GB, and "
            f"{need.free / 1e9:.1f} GB of memory may be used; give a run folder, or use fewer "
            "samples or a smaller subspace"
        )
    if chosen == "disk":
        if folder is None:
            raise InputError("gradients are kept on disk in the run folder, and none is given")
        what = f"the gradients of {samples} training samples"
        remedy = "choose another run folder, or another way to keep them"
        require_disk(folder, need.to_write, what, remedy=remedy)
    if chosen == "passes" and solver is not None and ESTIMATORS.find(solver.name).passes is None:
        raise InputError(
            f"the estimator {solver.name} reads gradients more often than passes can be afforded, "
            f"so they have to be kept, and those of {samples} samples take "
            f"{need.gradients / 1e9:.1f} GB, for which there is no room ({need.free / 1e9:.1f} GB "
            "of memory may be used); use datainf, grad_dot or cosine, fewer samples, or a smaller "
            "subspace"
        )
    if chosen == "memory" and processes.count() > 1:
        raise InputError(
            f"{processes.count()} processes share gradients through a run folder that all of them "
            "see, and cannot keep them in memory; run `layerif score`, give a run folder, or use "
            "keep='passes' with datainf, grad_dot, cosine or ekfac"
        )
    _say(chosen, need, numbers, samples)
    return chosen


def _automatic(need: Need, folder: Path | None, *, formed: bool) -> Keep:
    if not formed:
        return "passes"
    if folder is not None and has_room(folder, need.to_write):
        return "disk"
    fits = need.gradients + need.workspace <= need.free
    return "memory" if fits and processes.count() == 1 else "passes"


def _say(chosen: Keep, need: Need, numbers: int, samples: int) -> None:
    what = f"gradients of {samples} samples, {numbers:,} numbers each"
    size = f"{need.gradients / 1e9:.2f} GB"
    note(
        {
            "memory": f"{what}: {size} in memory, of {need.free / 1e9:.1f} GB that may be used",
            "disk": f"{what}: {size} on disk, in the run folder",
            "passes": f"{what}: not kept, computed again in each pass",
        }[chosen]
    )
