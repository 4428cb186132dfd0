"""What a fine-tuning run is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from layerif.core.choices import Schedule, check_choice
from layerif.errors import InputError

# What float32, in which adapters are trained, holds; and steps whose batches memory holds.
MOST = 1e30
MOST_STEPS = 10**7


@dataclass(frozen=True)
class FinetuneOptions:
    """How an adapter is trained.

    Attributes:
        rank: of each expert, or of plain LoRA; a plan of ranks has its own.
        alpha: LoRA's output is multiplied by alpha / rank, the same in every layer under a plan of
            ranks too.
        dropout: of the adapter's input.
        strict_dropout: a mask of its own for every expert.
        top_k: experts that a token is sent to.
        balance: factor of the load-balancing loss.
        epochs: passes through the training rows; `max_steps`, if given, takes its place.
        max_steps: steps of the optimiser.
        batch_size: rows of one step, over all processes.
        batch_tokens: tokens run at once, padding counted; it changes memory and speed alone.
        learning_rate, schedule, weight_decay, max_grad_norm: of AdamW.
        warmup_ratio: share of all steps in which the rate rises from 0.
        max_length: tokens kept of a row; a longer one loses its prompt from the left.
        append_eos: end every completion with the token that ends a text.
        evaluate_every: steps between measurements on the validation rows; None for once an epoch.
        patience: stop after so many measurements without a lower loss, and return the adapter of
            the lowest; None never stops, and returns the last.
        checkpoint_every: steps between checkpoints; where patience is given, `evaluate_every`.
        gradient_checkpointing: run layers again in the backward pass: less memory, more time.
        seed: of the adapter's first weights, of the order of rows, and of dropout.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    strict_dropout: bool = False
    top_k: int = 2
    balance: float = 0.0
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    batch_tokens: int = 2048
    learning_rate: float = 3e-4
    schedule: Schedule = "linear"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 512
    append_eos: bool = True
    evaluate_every: int | None = None
    patience: int | None = None
    checkpoint_every: int = 50
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice(self.schedule, Schedule, "schedule")
        for name in ("rank", "top_k", "batch_size", "batch_tokens", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_steps", "evaluate_every", "patience"):
            value = getattr(self, name)
            right = f"at least 1 and at most {MOST_STEPS:,}, or left out"
            self._require(name, value is None or 1 <= value <= MOST_STEPS, right)
        for name in ("alpha", "epochs", "learning_rate"):
            value = getattr(self, name)
            self._require(name, 0 < value <= MOST, f"positive and at most {MOST:g}")
        for name in ("balance", "weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            self._require(name, 0 <= value <= MOST, f"at least 0 and at most {MOST:g}")
        self._require("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self._require("warmup_ratio", 0 <= self.warmup_ratio < 1, "at least 0 and below 1")
        self._require("seed", 0 <= self.seed < 2**32, "at least 0 and below 2^32")
        self._require("max_length", self.max_length >= 2, "at least 2")

    def _require(self, name: str, holds: bool, right: str) -> None:
        if not holds:
            raise InputError(f"{name} is {getattr(self, name)}; it must be {right}")
