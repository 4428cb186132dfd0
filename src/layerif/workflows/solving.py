"""The stage of solving gradients that were kept: without a model, and without what opens one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from layerif.artifacts import SCORES, Fingerprint, LayerScores
from layerif.core.checkpoint import Steps
from layerif.core.processes import is_first
from layerif.influence.options import SolveOptions
from layerif.influence.solving import solve
from layerif.influence.store import Gradients
from layerif.workflows.stage import Stage

SCORING = Stage(SCORES, LayerScores.load, together=True)


def solve_into(
    folder: Path, gradients: Gradients, options: SolveOptions, *, overwrite: bool = False
) -> LayerScores:
    """`solve` saved to a run folder, as `score_into` with the same options saves it.

    Raises:
        InputError: as `solve` and `resumable`; or the folder holds scores from different settings.
        NumericalError: as `solve`.
    """
    made_from = gradients.record.fingerprint
    assert made_from is not None
    asked = {**made_from.options, **options.recorded()}
    wanted = Fingerprint(model=made_from.model, data=made_from.data, options=asked)

    def work(steps: Steps) -> LayerScores:
        return saved(solve(gradients, options=options, steps=steps), wanted, folder)

    return SCORING.run(folder, wanted, work, overwrite=overwrite)


def saved(scores: LayerScores, wanted: Fingerprint, folder: Path) -> LayerScores:
    """The scores with what they were made from, saved to a run folder by the first process."""
    record = scores.record.model_copy(update={"fingerprint": wanted})
    scores = replace(scores, record=record)
    if is_first():
        scores.save(folder)
    return scores
