"""What a search for layers to drop is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from layerif.core.choices import DepthUnit
from layerif.core.options import Options, Rule, idle
from layerif.core.registry import Registry
from layerif.plans import named

if TYPE_CHECKING:
    from layerif.search.depth_strategies import DepthStrategy

Count = Annotated[int, Field(ge=1)]

DEPTH_STRATEGIES: Registry[DepthStrategy] = Registry(
    "depth strategy",
    {name: f"layerif.search.depth_strategies:{name.upper()}" for name in named.DEPTH_STRATEGIES},
)
# Those that measure candidates, and those that ask the model nothing.
MEASURING = ("shortlist", "greedy")
NOT_ASKING = ("greedy", "random")


class DepthReading(Options):
    """What searches for layers to drop have in common: what is dropped, and the text they read."""

    title = "Search"

    unit: DepthUnit = "layer"
    """What is dropped: whole layers, or attention and MLP each by itself."""
    tokens: Count = 1024
    """Tokens of text that the model is asked on."""
    trial_tokens: Count = 1024
    """Tokens of text that the loss of each candidate is measured on."""
    candidates: Count = 3
    """Candidates of each of the three lists in every step."""
    context_length: Annotated[int, Field(ge=2)] = 512
    """Tokens of a chunk of running text."""
    held_out_tokens: Count = 8192
    """Tokens of held-out text that the plan is judged by at the end."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draws of text and layers."""
    batch_tokens: Count = 2048
    """Tokens run at once; at most 1,024 in a backward pass."""


class DepthSearchOptions(DepthReading):
    """Which layers or sublayers are dropped."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("candidates", lambda v: v["strategy"] == "shortlist", "with {strategy} shortlist"),
        Rule(
            "trial_tokens",
            lambda v: v["strategy"] in MEASURING,
            "with {strategy} shortlist or greedy",
        ),
        Rule(
            "tokens",
            lambda v: v["strategy"] not in NOT_ASKING,
            "with a {strategy} that asks the model: all but greedy and random",
        ),
    )

    strategy: Annotated[str, DEPTH_STRATEGIES] = "shortlist"
    """How layers are chosen. One after another: by loss among the few that gradients and block
    influence name (shortlist), or among all (greedy). At once, by the dense model: first and second
    order of the loss (quadratic), its gradient alone (taylor), block_influence, the run of layers
    over which hidden states turn least (contiguous), or random."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.strategy == "contiguous" and self.unit != "layer":
            raise ValueError("a contiguous run is one of whole layers; choose unit='layer'")
        return self

    def effective(self) -> dict[str, object]:
        """The options that have an effect on the plan, by name."""
        without = idle(self.rules, self.values())
        return {name: value for name, value in self.recorded().items() if name not in without}
