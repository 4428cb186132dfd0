"""Where gradients are to be kept, chosen beforehand from what they take and what there is."""

from __future__ import annotations

from pathlib import Path

import psutil

from layerif.artifacts.gradients import ROWS_FILE
from layerif.core import processes
from layerif.core.choices import Keep
from layerif.core.files import has_room, require_disk, taken
from layerif.core.progress import note
from layerif.errors import InputError
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.influence.options import SolveOptions
from layerif.influence.preparing import Prepared

# Never all that is free: the model's activations and other processes need some.
SHARE = 0.9


def choose(
    work: Prepared, folder: Path | None, solver: SolveOptions | None = None, workspace: int = 0
) -> Keep:
    """Where gradients are kept: `memory`, `disk`, or nowhere (`passes`); says so with the estimate.

    With `auto`, a run folder keeps them on disk, where they are written anyway so that the run can
    go on after an interruption, and the system holds in memory what there is room for. Without one
    they stay in memory where they fit. What fits neither way is computed again in several passes.

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
    work: Prepared, folder: Path | None, solver: SolveOptions | None, workspace: int
) -> Keep:
    keep, memory, samples = work.options.keep, work.options.memory, work.record.train_samples
    numbers = sum(matrix.size for matrix in work.matrices)
    size = samples * numbers * work.dtype.itemsize
    free = SHARE * psutil.virtual_memory().available if memory is None else memory * 1e9
    # Part of them is there already where a run was interrupted.
    to_write = size - (0 if folder is None else taken(folder / ROWS_FILE))
    fits = size + workspace <= free
    gradients = f"the gradients of {samples} training samples"
    takes, may_be_used = f"take {size / 1e9:.1f} GB", f"{free / 1e9:.1f} GB of memory may be used"
    if not work.formed and keep not in ("auto", "passes"):
        raise InputError(
            "the gradients of full weights are never formed, so they cannot be kept; use "
            "keep='auto', or another subspace"
        )
    if solver is not None and workspace > free and keep != "passes":
        raise InputError(
            f"the estimator {solver.estimator} takes {workspace / 1e9:.1f} GB for the matrices of "
            f"one block of {samples} training samples, and {may_be_used}; use fewer samples or a "
            "smaller subspace, or an estimator without such matrices: datainf or cg"
        )
    chosen = keep
    if keep == "auto":
        if work.formed and folder is not None and has_room(folder, to_write):
            chosen = "disk"
        else:
            alone = processes.count() == 1
            chosen = "memory" if work.formed and fits and alone else "passes"
    if chosen == "memory" and not fits:
        raise InputError(
            f"{gradients} {takes}, and {may_be_used}; give a run folder, or use fewer samples or a "
            "smaller subspace"
        )
    if chosen == "disk":
        if folder is None:
            raise InputError("gradients are kept on disk in the run folder, and none is given")
        remedy = "choose another run folder, or another way to keep them"
        require_disk(folder, to_write, gradients, remedy=remedy)
    if chosen == "passes" and solver and ESTIMATORS.find(solver.estimator).passes is None:
        raise InputError(
            f"the estimator {solver.estimator} reads gradients more often than passes can be "
            f"afforded, so they have to be kept; {gradients} {takes}, for which there is no room "
            f"({may_be_used}); use datainf, grad_dot or cosine, fewer samples, or a smaller "
            "subspace"
        )
    if chosen == "memory" and processes.count() > 1:
        raise InputError(
            f"{processes.count()} processes share gradients through a run folder that all of them "
            "see, and cannot keep them in memory; run `layerif score`, give a run folder, or use "
            "keep='passes' with datainf, grad_dot, cosine or ekfac"
        )
    where = {
        "memory": f"{size / 1e9:.2f} GB in memory, of {free / 1e9:.1f} GB that may be used",
        "disk": f"{size / 1e9:.2f} GB on disk, in the run folder",
        "passes": "not kept, computed again in each pass",
    }[chosen]
    note(f"gradients of {samples} samples, {numbers:,} numbers each: {where}")
    return chosen
