"""Stages that write a result and can be cut short: each goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from layerif.artifacts import Allocation, LayerScores, Manifest
from layerif.checkpoint import Fingerprint, hash_model, hash_texts, resumable
from layerif.influence import score
from layerif.model import Tokenizer, setting
from layerif.pruning import prune, save_pruned
from layerif.tasks import Corpus, Example, Task


def score_into(
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    task: Task,
    *,
    train: Sequence[Example],
    validation: Sequence[Example],
    options: dict[str, Any],
    overwrite: bool = False,
) -> LayerScores:
    """`score` with `options`, saved to a run folder; finished batches survive an interruption.

    Raises:
        InputError: as `score` and `resumable`.
        NumericalError: as `score`.
    """
    data = hash_texts([[astuple(e) for e in train], [astuple(e) for e in validation]])
    fingerprint = _fingerprint(model, data, options)
    with resumable(folder, fingerprint, restart=overwrite) as steps:
        scores = score(
            model,
            tokenizer,
            train,
            validation,
            task={"name": task.name, **task.origin},
            steps=steps,
            **options,
        )
        scores.save(folder)
    return scores


def prune_into(
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    plan: Allocation | float,
    *,
    calibration: Corpus,
    options: dict[str, Any],
    overwrite: bool = False,
) -> Manifest:
    """`prune` with `options`, in place and saved to a model folder; finished layers survive.

    Raises:
        InputError: as `prune` and `resumable`.
        NumericalError: as `prune`.
    """
    wanted = plan.allocation if isinstance(plan, Allocation) else plan
    data = hash_texts([calibration.text("calibration")])
    fingerprint = _fingerprint(model, data, {"plan": wanted, **options})
    with resumable(folder, fingerprint, restart=overwrite) as steps:
        manifest = prune(
            model, plan, tokenizer=tokenizer, calibration=calibration, steps=steps, **options
        )
        save_pruned(model, tokenizer, manifest, folder)
    return manifest


def _fingerprint(model: Any, data: str, options: dict[str, Any]) -> Fingerprint:
    made_with = setting(model).model_dump()
    return Fingerprint(hash_model(model), data, {**options, **made_with})
