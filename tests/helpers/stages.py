"""Each stage's work on a tiny model, small and of many steps, and what its result holds."""

from __future__ import annotations

import torch

from helpers.marginal_models import corpus
from helpers.scoring import TRAIN, VALIDATION
from helpers.tiny import tiny_model, tiny_tokenizer
from layerif.artifacts import LayerScores, Results
from layerif.compress.pruning.options import PruneOptions
from layerif.core.checkpoint import resumable, steps_folder
from layerif.data import Corpus, Task, load_task
from layerif.evaluation.options import EvaluateOptions
from layerif.influence.options import ScoreOptions
from layerif.search.options import SearchOptions
from layerif.validation.options import CapacityOptions
from layerif.workflows.searching import search_into
from layerif.workflows.stages import evaluate_into, prune_into, score_into
from layerif.workflows.validation import capacity_into

TASK = Task("made up", {"train": TRAIN, "validation": VALIDATION, "test": []})
TEXT = Corpus(
    "made up", [" ".join(f"{i} squared is {i * i}." for i in range(300))], ["x y z " * 99], "\n\n"
)


def score_small(out, **changes):
    # One sample a batch, so that there are many moments to be killed in.
    options = {"rank": 2, "alpha": 4.0, "batch_tokens": 1} | changes
    model, tokenizer = tiny_model(), tiny_tokenizer()
    return score_into(
        out,
        model,
        tokenizer,
        TASK,
        train=TRAIN,
        validation=VALIDATION,
        options=ScoreOptions(**options),
    )


def prune_small(out, **changes):
    options = {"calibration_samples": 20, "context_length": 64, "batch_tokens": 64} | changes
    return prune_into(
        out,
        tiny_model(),
        tiny_tokenizer(),
        0.5,
        calibration=TEXT,
        options=PruneOptions(**options),
    )


def evaluate_small(out, **changes):
    options = {"context_length": 32, "batch_tokens": 64, "samples": 12} | changes
    model, tokenizer = tiny_model(), tiny_tokenizer()
    sources = [load_task("agreement"), TEXT]
    cache = out.with_name(f"{out.name}.cache")
    return evaluate_into(
        out, model, tokenizer, sources, options=EvaluateOptions(**options), cache=cache
    )


def marginal_small(out):
    options = {"calibration_samples": 4, "context_length": 32, "rounds": 2, "tokens": 64}
    return search_into(
        out,
        tiny_model(),
        tiny_tokenizer(),
        0.5,
        calibration=corpus(),
        options=SearchOptions(**options, held_out_tokens=64),
    )


def capacity_small(out, model=None):
    options = {"rank": 2, "train_steps": 2, "batch_tokens": 400}
    return capacity_into(
        out,
        model or tiny_model(),
        tiny_tokenizer(),
        TASK,
        train=TRAIN,
        validation=VALIDATION,
        max_length=128,
        options=CapacityOptions(**options),
    )


def steps_of(out):
    """Where the work that writes `out` keeps its finished steps."""
    cached = out.with_name(f"{out.name}.cache")
    return [steps_folder(out), *cached.glob(".*.steps")]


def contents(out):
    """What a result holds, the seconds it took aside."""
    if out.is_file():
        return Results.load(out)
    if (out / "scores.json").exists():
        scores = LayerScores.load(out)
        record = scores.record.model_copy(update={"seconds": 0.0})
        return [scores.influence.tobytes(), scores.projection_influence.tobytes(), record]
    return [(out / "model.safetensors").read_bytes()]


def cut_short(out, wanted, error=KeyboardInterrupt):
    """One finished step, then the end."""
    with resumable(out, wanted) as steps:
        steps.save("one", {"x": torch.tensor([1.5, 2.5])})
        raise error
