"""What a search for a plan is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from layerif.compress.pruning.registry import PRUNERS
from layerif.compress.quantization.options import GridOptions
from layerif.core.choices import Granularity
from layerif.core.options import ADDED, Rule, idle
from layerif.data.options import ChunkOptions
from layerif.plans.maps.bits import LEVELS
from layerif.search.registry import STRATEGIES

Count = Annotated[int, Field(ge=1)]
Distance = Annotated[float, Field(ge=0)]
QuestionKind = Literal["sparsity", "bits"]
Start = Literal["uniform", "quadratic"]
Criterion = Literal["diagonal", "token", "first", "local"]
BitsGranularity = Literal["projection", "fused", "layer"]


def _stage(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", text):
        raise ValueError(f"{text!r} is not TOKENS:SURVIVORS, each at least 1, as in 1024:4")
    return text


def _levels(levels: tuple[int, ...]) -> tuple[int, ...]:
    if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(LEVELS):
        raise ValueError("levels are different ones of 2 to 8, and 16, as in 2,3,4")
    return levels


Levels = Annotated[tuple[int, ...], AfterValidator(_levels)]
DEFAULT_LEVELS = (2, 3, 4, 5, 6, 8)


class StrategyOptions(ChunkOptions):
    """How any plan is searched for."""

    title = "Search"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("rounds eta", lambda v: v["strategy"] == "marginal", "with {strategy} marginal"),
        Rule(
            "start",
            lambda v: v["strategy"] != "quadratic",
            "with {strategy} marginal or evolution",
        ),
        Rule(
            "criterion",
            lambda v: "quadratic" in (v["strategy"], v["start"]),
            "with {strategy} or {start} quadratic",
        ),
        Rule(
            "tokens",
            lambda v: v["strategy"] != "evolution" or v["start"] == "quadratic",
            "with {strategy} marginal or quadratic, or {start} quadratic",
        ),
        Rule(
            "seconds evaluations offspring stages",
            lambda v: v["strategy"] == "evolution",
            "with {strategy} evolution",
        ),
    )

    renamed: ClassVar[Mapping[str, str]] = {"samples": "calibration_samples"}

    strategy: Annotated[str, STRATEGIES] = "marginal"
    """How the plan is found: moved by what the compressed model's gradients say (marginal), chosen
    by one pass on the model as it was (quadratic), or moved at random (evolution)."""
    method: str
    """How the model is compressed during the search; choose the method that the plan is for."""
    granularity: str
    """What gets a level of its own."""
    calibration_samples: Count = 16
    """Chunks of calibration text."""
    held_out_tokens: Count = 8192
    """Tokens of held-out text that plans are judged by."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draws of text and of moves."""
    batch_tokens: Count = 2048
    """Tokens run at once; at most 1,024 in a backward pass."""

    start: Annotated[Start, ADDED] = "uniform"
    """The plan that the strategy starts from: all alike, or the one of the quadratic question."""
    criterion: Annotated[Criterion, ADDED] = "diagonal"
    """What levels are judged by: second order of the loss, with outputs one by one (diagonal) or
    each token as a whole (token); first order alone (first); or the outputs' error (local)."""
    rounds: Count = 5
    """Moves of the plan."""
    eta: Annotated[float, Field(gt=0, le=1)] = 0.06
    """Step of the first round."""
    tokens: Count = 4096
    """Tokens of text for the gradient of each round, or for the quadratic question."""

    seconds: Annotated[float | None, Field(gt=0)] = None
    """Time after which the search ends."""
    evaluations: Annotated[int | None, Field(ge=1)] = None
    """Measured losses after which the search ends."""
    offspring: Count = 16
    """Plans tried in each generation."""
    stages: tuple[Annotated[str, AfterValidator(_stage)], ...] = ("1024:4",)
    """Tokens and survivors of each selection before the one on held-out text, as in 1024:8,4096:2;
    each draws its own text."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.strategy == "evolution" and self.seconds is None and self.evaluations is None:
            raise ValueError(
                "an evolutionary search goes on until a limit: give seconds, evaluations, or both"
            )
        return self

    def effective(self) -> dict[str, object]:
        """The options that have an effect on the plan, by name."""
        without = idle(self.rules, self.values())
        found = {name: value for name, value in self.recorded().items() if name not in without}
        if self.strategy == "marginal" and self.start == "quadratic":
            found["start"] = "quadratic, or uniform where that is better"
        return found


class SearchOptions(StrategyOptions):
    """How a plan of sparsity is searched for."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *StrategyOptions.rules,
        Rule("delta", lambda v: v["strategy"] == "marginal", "with {strategy} marginal"),
        Rule("step", lambda v: v["strategy"] == "evolution", "with {strategy} evolution"),
    )

    method: Annotated[str, PRUNERS] = "wanda"
    """How the model is compressed during the search; choose the method that the plan is for."""
    granularity: Granularity = "projection"
    """What gets a level of its own."""
    start: Start = "quadratic"
    """The plan that the strategy starts from: all alike, or the one of the quadratic question."""
    below: Distance = 0.25
    """How far a level may lie below the total."""
    above: Distance = 0.2
    """How far a level may lie above the total."""
    delta: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Half the width of the band of weights that a gradient asks for, as a fraction."""
    step: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Size of a move, as a fraction of the smaller projection."""


class BitsSearchOptions(GridOptions, StrategyOptions):
    """How a plan of bits is searched for."""

    title = "Search"
    rules: ClassVar[tuple[Rule, ...]] = (*GridOptions.rules, *StrategyOptions.rules)

    strategy: Annotated[str, STRATEGIES] = "quadratic"
    """How the plan is found: chosen by one pass on the model as it was (quadratic), or moved at
    random (evolution) or by what the rounded model's gradients say (marginal)."""
    granularity: BitsGranularity = "projection"
    """What gets bits of its own: a projection, those that vLLM and SGLang fuse (fused), a layer."""
    levels: Levels = DEFAULT_LEVELS
    """Bits to choose among; 16 leaves a projection as it is."""
    eta: Annotated[float, Field(gt=0, le=6)] = 0.5
    """Step of the first round, in bits."""
