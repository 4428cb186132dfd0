"""What pruning calibrates on beside corpora: a task's training rows, or the model's own text."""

from __future__ import annotations

from dataclasses import dataclass

from layerif.data.base import Task
from layerif.data.corpora import Corpus, corpus_of
from layerif.errors import InputError

SELF = "self"


@dataclass(frozen=True)
class SelfText:
    """In the place of a corpus: text that the model samples from itself."""

    name: str = SELF


def training_text(task: Task) -> Corpus:
    """A task's training rows as calibration text, in their order: each prompt with its completion.

    There is no evaluation part: perplexity is measured on corpora.

    Raises:
        InputError: the task has no training rows.
    """
    rows = task.sample("train", None, 0)
    if not rows:
        raise InputError(f"task {task.name} has no training rows to calibrate on; name a corpus")
    texts = [row.prompt + row.completion for row in rows]
    origin = {"task": task.name, "split": "train", "rows": len(rows), "origin": task.origin}
    return corpus_of(task.name, texts, [], "\n\n", origin)
