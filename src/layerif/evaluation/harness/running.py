"""A model run on tasks of lm-evaluation-harness."""

from __future__ import annotations

import logging
from typing import Any

from layerif.artifacts import Results
from layerif.evaluation.evaluate import sparsity_of
from layerif.evaluation.harness.loading import HarnessTasks
from layerif.evaluation.harness.measuring import measurements_of
from layerif.evaluation.harness.quiet import quiet_harness
from layerif.model.modes import as_found, evaluation_mode
from layerif.model.opening import Tokenizer, describe, setting


def harness_results(
    model: Any, tokenizer: Tokenizer, tasks: HarnessTasks, *, batch_size: int = 4
) -> Results:
    """What lm-evaluation-harness reports of a model, with its own prompts and its own arithmetic.

    A row too long for the model's context loses its beginning. Each measurement has, in `details`,
    all that lm-eval reports of the task: `metrics` as it names them, `figure` the one of them that
    is the measurement's value, `shots` and `task_version`. The figures of groups, and of tasks that
    are measured by neither an accuracy nor a perplexity, are in `how["harness"]["reported"]`.

    Args:
        tasks: from `load_harness`.
        batch_size: rows run at once.

    Raises:
        NumericalError: a likelihood is not finite.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate

    from layerif.evaluation.harness.model import HarnessModel

    for task in tasks.tasks.values():
        # lm-eval's seed, for lm-eval's shots; again for each model, which shall get the same ones.
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    with as_found(model), evaluation_mode(model):
        # Wrapping warns of what is the case in every run: the model is open already.
        with quiet_harness(logging.ERROR):
            wrapped = HarnessModel(model, tokenizer, batch_size)
        with quiet_harness():
            evaluated = evaluate(
                wrapped,
                {"tasks": dict(tasks.tasks), "groups": dict(tasks.groups)},
                samples=tasks.rows,
                bootstrap_iters=0,
            )
    measurements, reported = measurements_of(evaluated)
    return Results(
        model=describe(model),
        sparsity=sparsity_of(model),
        measurements=measurements,
        how={"harness": {**tasks.origin, "batch_size": batch_size, "reported": reported}},
        setting=setting(model),
    )
