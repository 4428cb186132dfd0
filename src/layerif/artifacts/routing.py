"""How the routers of a mixture of LoRA experts were seen to use their experts."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from layerif.core.record import JsonArtifact, ModelInfo, Record

FORMAT: Literal["layerif.routing/1"] = "layerif.routing/1"


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

    format: Literal["layerif.routing/1"] = FORMAT
    model: ModelInfo
    adapter: str
    routers: list[RouterLoad]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.routers:
            raise ValueError("routers must not be empty")
        if any(router.layer >= self.model.layers for router in self.routers):
            raise ValueError(f"layers of routers must be below {self.model.layers}")
        return self
