"""What an evaluation is asked for."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from layerif.core.choices import TaskScoring
from layerif.core.options import Options, Rule, Shown, Values
from layerif.data.options import tasks_among


def has_task(values: Values) -> bool:
    """Whether a task is among what is measured."""
    return bool(tasks_among(values))


def has_corpus(values: Values) -> bool:
    """Whether a corpus is among what is measured."""
    listed = values.get("tasks") or []
    count = len(listed.split(",")) if isinstance(listed, str) else len(listed)
    return count > len(tasks_among(values))


class EvaluateOptions(Options):
    """How models are measured."""

    title = "Evaluation"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "samples max_length",
            lambda v: v.get("harness") is not None or has_task(v),
            "for tasks",
        ),
        Rule("scoring", has_task, "for tasks"),
        Rule("max_tokens context_length", has_corpus, "for corpora"),
    )

    samples: Annotated[int | None, Field(ge=1), Shown("all")] = None
    """Test rows of each task."""
    max_tokens: Annotated[int | None, Field(ge=2), Shown("all")] = None
    """Tokens of each corpus."""
    scoring: TaskScoring = "likelihood"
    """How answers are found: likelihood of each candidate, or generation of one. A corpus has its
    perplexity either way."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Tokens kept of an example; a longer prompt is cut from the left."""
    context_length: Annotated[int, Field(ge=2)] = 512
    """Tokens of a chunk of running text."""
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens run at once, padding counted."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all draws; splits do not depend on it."""
