"""The record of a fine-tuned adapter: by what plan, on what, and how the loss went."""

from __future__ import annotations

from typing import Any, Literal

from layerif.artifacts.plan import Plan
from layerif.core.fingerprint import Fingerprint
from layerif.core.record import JsonArtifact, ModelInfo, Record, Setting

FINETUNING_FILE = "layerif_finetuning.json"


class StepLoss(Record):
    """What the steps up to `step` came to since the last entry.

    Attributes:
        loss: mean nats a completion token.
        router_entropy: of a token's probabilities, mean over routers, in nats; None without any.
        dead_experts: share of experts that got no token.
        largest_load: largest share that one expert of a router got.
    """

    step: int
    loss: float
    learning_rate: float
    router_entropy: float | None = None
    dead_experts: float | None = None
    largest_load: float | None = None


class ValidationLoss(Record):
    """Mean over the validation rows of their mean nats a completion token, after `step` steps."""

    step: int
    loss: float


class Finetuning(JsonArtifact):
    """How an adapter came to be.

    Attributes:
        model: what it is for.
        method: `lora` or `lora_moe`.
        plan: experts or ranks of each layer; None for LoRA of one rank.
        trainable_parameters: how many numbers were trained.
        task: name and origin of the rows.
        options: all of the run's.
        rows: how many trained, how many measured, and how many did not fit and were left out.
        steps: of the optimiser that were taken.
        losses, evaluations: as training went.
        best_step: the step whose adapter was kept; None for the last.
        seconds: of the run that finished it, which may have been resumed.
        processes: how many worked together.
    """

    format: Literal["layerif.finetuning/1"] = "layerif.finetuning/1"
    model: ModelInfo
    method: Literal["lora", "lora_moe"]
    plan: Plan | None = None
    trainable_parameters: int
    task: dict[str, Any]
    options: dict[str, Any]
    rows: dict[str, int]
    steps: int
    losses: list[StepLoss]
    evaluations: list[ValidationLoss]
    best_step: int | None = None
    seconds: float
    processes: int
    setting: Setting
    fingerprint: Fingerprint | None = None
