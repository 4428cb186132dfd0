"""What a fine-tuning run is asked for."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from layerif.core.choices import Schedule
from layerif.core.options import ADDED, GIVES_WAY, RESULTS_UNCHANGED, Options, Rule, Shown, Values
from layerif.data.options import Wanted

if TYPE_CHECKING:
    from layerif.data.base import Example, Task

# What float32, in which adapters are trained, holds; and steps whose batches memory holds.
MOST = 1e30
MOST_STEPS = 10**7

Steps = Annotated[int | None, Field(ge=1, le=MOST_STEPS)]
Positive = Annotated[float, Field(gt=0, le=MOST)]
NotNegative = Annotated[float, Field(ge=0, le=MOST)]


def _kind(values: Values) -> str | None:
    """What the plan of fine-tuning gives out; None for plain LoRA of one rank."""
    from layerif.artifacts import Plan

    return None if values.get("plan") is None else Plan.load(values["plan"]).kind


class AdapterShape(Options):
    """The adapter that is trained."""

    title = "Adapter"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("strict_dropout", lambda v: v.get("dropout") != 0, "with {dropout}"),
        Rule("adapt_experts", lambda v: v.get("dropout") == 0, "without {dropout}"),
    )

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of each expert, or of plain LoRA; a plan of ranks has its own."""
    alpha: Positive = 16.0
    """LoRA's output is multiplied by alpha / rank, in every layer alike."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the adapter's input."""
    strict_dropout: bool = False
    """A dropout mask of its own for every expert."""
    top_k: Annotated[int, Field(ge=1)] = 2
    """Experts that a token is sent to."""
    balance: NotNegative = 0.0
    """Factor of the load-balancing loss; 0.001 is usual."""
    adapt_experts: Annotated[bool, ADDED] = False
    """Put a LoRA beside each expert of a mixture too. It takes many parameters."""


class FinetuneOptions(AdapterShape):
    """How an adapter is trained."""

    title = "Training"
    rules: ClassVar[tuple[Rule, ...]] = (
        *AdapterShape.rules,
        Rule("epochs", lambda v: v.get("max_steps") is None, "without {max_steps}"),
        Rule(
            "evaluate_every patience",
            lambda v: v.get("validation_samples") != 0,
            "where {validation_samples} is not 0",
        ),
        Rule(
            "checkpoint_every",
            lambda v: v.get("patience") is None,
            "without {patience}, with which checkpoints are made where the loss is measured",
        ),
    )
    # LayerIF's setting. Not mirrored: a warm-up of 100 steps, more than some of its runs have.
    presets: ClassVar[Mapping[str, Values]] = {
        "paper": {
            "style": "alpaca",
            "rank": 8,
            "alpha": 16.0,
            "dropout": 0.05,
            "top_k": 2,
            "balance": 0.0,
            "epochs": 3.0,
            "batch_size": 128,
            "learning_rate": 3e-4,
            "max_length": 256,
            "append_eos": True,
        }
    }

    epochs: Positive = 3.0
    """Passes through the training rows."""
    max_steps: Steps = None
    """Steps of the optimiser, in place of epochs."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows of one step, over all processes."""
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens run at once, padding counted; changes memory and speed alone."""
    learning_rate: Positive = 3e-4
    """Peak learning rate of AdamW."""
    schedule: Schedule = "linear"
    """How the learning rate changes after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of all steps in which the learning rate rises from 0."""
    weight_decay: NotNegative = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: NotNegative = 1.0
    """Norm that gradients are clipped to; 0 for no clipping."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Tokens kept of an example; a longer prompt is cut from the left."""
    append_eos: bool = True
    """End every completion with the token that ends a text."""
    evaluate_every: Annotated[Steps, Shown("an epoch")] = None
    """Steps between measurements of the loss on validation rows."""
    patience: Annotated[Steps, Shown("never")] = None
    """Stop after this many measurements without a lower loss, and keep the best adapter."""
    checkpoint_every: Annotated[int, Field(ge=1), RESULTS_UNCHANGED] = 50
    """Steps between checkpoints; with patience they are made where the loss is measured."""
    gradient_checkpointing: Annotated[bool, RESULTS_UNCHANGED] = False
    """Run layers again in the backward pass: less memory, a third more time."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all draws; splits do not depend on it."""

    @classmethod
    def preset_options(cls, word: str, given: Container[str]) -> dict[str, Any]:
        """The options of a preset but for those that are given."""
        return {name: value for name, value in cls.presets[word].items() if name not in given}


class PlannedOptions(FinetuneOptions):
    """Those of `layerif finetune`, whose plan says which of them count."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("rank", lambda v: _kind(v) != "ranks", "where the plan does not give the ranks"),
        Rule(
            "top_k balance strict_dropout",
            lambda v: _kind(v) == "experts",
            "with a {plan} of experts",
        ),
        Rule("adapt_experts", lambda v: _kind(v) != "experts", "for plain LoRA"),
        *FinetuneOptions.rules,
    )


class RowOptions(Options):
    """Which rows are trained on; left out, validation has no more than there are."""

    title = "Data"

    train_samples: Annotated[int | None, Field(ge=1), Shown("all")] = None
    """Training rows of the task, or chunks of the text."""
    validation_samples: Annotated[int, Field(ge=0), GIVES_WAY] = 100
    """Validation rows whose loss is measured as training goes; 0 for none."""

    def rows(self, task: Task, seed: int) -> tuple[list[Example], list[Example]]:
        """Training and validation rows, drawn by the seed.

        Raises:
            InputError: the task has fewer.
        """
        count = self.validation_samples
        if "validation_samples" in self.left_out():
            count = task.default("validation", count)
        return (
            task.sample("train", self.train_samples, seed),
            task.sample("validation", count, seed) if count else [],
        )

    def wanted(self) -> tuple[Wanted, Wanted]:
        """How many chunks of running text are taken in place of training and validation rows."""
        exactly = "validation_samples" not in self.left_out()
        return Wanted(self.train_samples), Wanted(self.validation_samples, exactly)
