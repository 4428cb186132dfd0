"""Which texts: a task's samples, the form of its prompts, calibration text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from layerif.core.choices import PromptStyle
from layerif.core.options import GIVES_WAY, Options, Rule, Shown, Values
from layerif.data import Corpus, has_style, is_task, load_sources, load_task
from layerif.data.base import Example, Split, Task
from layerif.data.registry import CORPORA, TASKS
from layerif.data.styles import check_template_options


def tasks_among(values: Values) -> list[str]:
    """The tasks among what options list as `task` or `tasks`, corpora left out."""
    listed = values.get("tasks", values.get("task")) or []
    words = listed.split(",") if isinstance(listed, str) else listed
    return [name for name in map(str.strip, words) if is_task(name)]


def has_styles(values: Values) -> bool:
    """Whether one of the tasks has prompts in several styles."""
    style: PromptStyle = values.get("style") or "alpaca"
    return any(has_style(name, style) for name in tasks_among(values))


STYLED = Rule("style", has_styles, "for tasks that have prompts in several styles")


class PromptOptions(Options):
    """The form of a task's prompts, and where data lies."""

    title = "Data"
    rules: ClassVar[tuple[Rule, ...]] = (STYLED,)

    style: PromptStyle = "alpaca"
    """Form of prompts; chat is the model's own chat template, harness has the words of
    lm-evaluation-harness."""
    template_options: Annotated[
        dict[str, bool | int | float | str | None],
        Shown(flag="--template-option", metavar="NAME=VALUE"),
    ] = Field(default_factory=dict)
    """Variable of the chat template, such as enable_thinking=false; repeat for several."""
    data_dir: Path | None = None
    """Folder of parquet data sets, instead of the hub."""

    def loading(self, model: str | None, *, trust_remote_code: bool) -> dict[str, Any]:
        """What `load_task` and `load_sources` take.

        The tokenizer that the style chat needs is opened before the model, so that prompts are
        refused before weights are loaded; None where the style needs none, or no model is named.

        Raises:
            InputError: template options for another style.
        """
        check_template_options(self.style, self.template_options)
        tokenizer = None
        if self.style == "chat" and model is not None:
            from layerif.model.opening import open_tokenizer

            tokenizer = open_tokenizer(model, trust_remote_code=trust_remote_code)
        prompts = {name: getattr(self, name) for name in PromptOptions.model_fields}
        return {**prompts, "tokenizer": tokenizer}


class TaskOptions(PromptOptions):
    """A task."""

    task: Annotated[str, TASKS]
    """A JSONL, CSV or parquet file, or a name."""

    def load(self, model: str, *, trust_remote_code: bool) -> Task:
        """The task, with prompts for the model.

        Raises:
            InputError: no such task, or prompts that cannot be made.
        """
        return load_task(self.task, **self.loading(model, trust_remote_code=trust_remote_code))


class LearntOptions(PromptOptions):
    """A task, or running text."""

    task: Annotated[str, TASKS]
    """A JSONL, CSV or parquet file, or a name; or a corpus or text file, of which every token
    counts."""

    def load(self, model: str, *, trust_remote_code: bool) -> Task | Corpus:
        """The task, with prompts for the model, or the text.

        Raises:
            InputError: there is neither of that name, or prompts cannot be made.
        """
        how = self.loading(model, trust_remote_code=trust_remote_code)
        (found,) = load_sources([self.task], **how)
        return found


@dataclass(frozen=True)
class Wanted:
    """How many rows.

    Attributes:
        count: None for all.
        exactly: or else no more than there are; of validation rows a tenth of them.
        least: that a tenth comes to.
    """

    count: int | None
    exactly: bool = True
    least: int = 0


class SampleOptions(Options):
    """How many rows of a task's splits are taken; left out, no more than there are."""

    title = "Data"

    train_samples: Annotated[int, Field(ge=1), GIVES_WAY] = 200
    """Training rows of the task, or chunks of the text."""
    validation_samples: Annotated[int, Field(ge=1), GIVES_WAY] = 50
    """Validation rows of the task, or chunks of the text."""

    def rows(self, task: Task, split: Split, seed: int) -> list[Example]:
        """Rows of a split, drawn by the seed."""
        name = f"{split}_samples"
        count = getattr(self, name)
        if name in self.left_out():
            count = task.default(split, count)
        return task.sample(split, count, seed)

    def wanted(self) -> tuple[Wanted, Wanted]:
        """How many chunks of running text are taken in place of training and validation rows."""
        train, validation = (
            Wanted(getattr(self, name), exactly=name not in self.left_out(), least=1)
            for name in ("train_samples", "validation_samples")
        )
        return train, validation


class ChunkOptions(Options):
    """How running text is cut."""

    title = "Calibration"

    calibration_samples: Annotated[int, Field(ge=1)] = 32
    """Chunks of calibration text."""
    context_length: Annotated[int, Field(ge=2)] = 512
    """Tokens of a chunk of running text."""


class CalibrationOptions(ChunkOptions):
    """Running text, in chunks."""

    calibration: Annotated[str, CORPORA] = "python-docs"
    """A text file, or a name."""
