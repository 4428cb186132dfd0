"""From a model and examples to LayerScores."""

from __future__ import annotations

import time
from typing import Any

from layerif.artifacts import LayerScores
from layerif.artifacts.gradients import ROWS_FILE
from layerif.core.checkpoint import NO_STEPS, Steps
from layerif.core.options import takes
from layerif.core.processes import is_first
from layerif.data.rows import Rows
from layerif.influence.collecting import collected
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.influence.memory import choose
from layerif.influence.options import ScoreOptions
from layerif.influence.preparing import prepared
from layerif.influence.solving import assembled, group, solve, workspace
from layerif.influence.streaming import stream
from layerif.model.opening import Tokenizer


@takes(ScoreOptions)
def score(
    model: Any,
    tokenizer: Tokenizer,
    train: Rows,
    validation: Rows,
    *,
    options: ScoreOptions,
    task: dict[str, Any] | None = None,
    steps: Steps | None = None,
) -> LayerScores:
    """How each training sample moves the validation loss through each decoder layer.

    An estimator, DataInf unless another is named, on a fresh LoRA subspace: one forward and one
    backward pass over each sample, in batches, for all layers at once. The loss of a sample is the
    mean cross-entropy of its completion tokens. The result does not depend on batch size, order of
    samples or padding side.

    It is `solve` of what `collect` returns, or where gradients have room nowhere, several passes
    that keep none.

    Of several processes (`torchrun`) each calls it with the same, and has the whole result: each
    runs its share of the batches, and they share what comes of them through the folder of `steps`,
    or add it up where gradients are not kept.

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer.
        train: samples whose influence is measured.
        validation: samples whose mean loss they are measured on.
        options: whose gradients, and how influence follows; each by keyword too.
        task: where the samples come from, for the record.
        steps: keeps finished batches and blocks, so that an interrupted run can go on; None keeps
            nothing.

    Raises:
        InputError: no such estimator, no sample left to use, or the gradients do not fit in memory.
        NumericalError: a loss or gradient is not finite; names the sample.
    """
    began = time.perf_counter()
    kept = steps or NO_STEPS
    options.check_sweep()
    with prepared(model, tokenizer, train, validation, options, task=task, steps=kept) as work:
        groups = group(work.record, options.block)
        needed = workspace(groups, work.matrices, work.record.train_samples, options)
        place = choose(work, kept.folder, options, needed)
        if place != "disk" and kept.folder is not None and is_first():
            # Of a run that kept them: it takes room.
            (kept.folder / ROWS_FILE).unlink(missing_ok=True)
        if place != "passes":
            factors = ESTIMATORS.find(options.estimator).by_position
            gradients = collected(work, place == "disk", factors, kept)
            return solve(gradients, options=options, steps=kept if place == "disk" else None)
        solutions, losses, validation_loss = stream(work, groups, options, kept)
    found = {"validation_loss": validation_loss, "seconds": time.perf_counter() - began}
    record = work.record.model_copy(update=found)
    return assembled(record, options, groups, solutions, losses, work.train.order)
