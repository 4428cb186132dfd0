"""The record of a fine-tuned adapter, and of how its routers use their experts."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

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


class RouterLoad(Record):
    """The use of one router's experts.

    Attributes:
        module: canonical name of the projection, `layers.7.mlp.up_proj`.
        layer: its decoder layer.
        top_k: experts that a token is sent to.
        tokens: seen, padding left out.
        counts: tokens that each expert was sent.
        entropy: mean entropy of a token's probabilities before the top k, in nats.
    """

    module: str
    layer: int = Field(ge=0)
    top_k: int = Field(ge=1)
    tokens: int = Field(ge=1)
    counts: list[int]
    entropy: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.counts) < 2 or min(self.counts) < 0:
            raise ValueError("counts must be those of two experts or more, none of them negative")
        if sum(self.counts) != self.top_k * self.tokens:
            raise ValueError(
                f"{self.tokens} tokens sent to {self.top_k} experts each make "
                f"{self.top_k * self.tokens}, and counts add up to {sum(self.counts)}"
            )
        if not 0 <= self.entropy <= math.log(len(self.counts)) + 1e-6:
            raise ValueError(f"entropy must lie within 0 and ln {len(self.counts)}")
        return self

    @property
    def load(self) -> list[float]:
        """The share of each expert in all assignments."""
        return [count / (self.top_k * self.tokens) for count in self.counts]


class RoutingUse(JsonArtifact):
    """The use of all routers of an adapter on some text.

    Attributes:
        model: that the adapter is in.
        adapter: its name.
        routers: those of more than one expert, in the order of the model.
    """

    format: Literal["layerif.routing/1"] = "layerif.routing/1"
    model: ModelInfo
    adapter: str
    routers: list[RouterLoad] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(router.layer >= self.model.layers for router in self.routers):
            raise ValueError(f"layers of routers must be below {self.model.layers}")
        return self
