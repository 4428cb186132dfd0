"""How scores become a plan: the options of each kind's maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from layerif.core.choices import (
    Aggregation,
    BitsMap,
    CountsCompat,
    CountsMap,
    DepthMap,
    Granularity,
    OnConstant,
    Orientation,
    ScoreScale,
    SparsityMap,
)
from layerif.core.options import Options, Rule, Shown, Values
from layerif.plans.maps.counts import MOLA_SHAPE


def of_influence(values: Values) -> bool:
    """Whether the scores are a run folder's."""
    scores = values.get("scores")
    return scores is not None and (Path(scores).is_dir() or not Path(scores).suffix)


class MapOptions(Options):
    """What maps of every kind take."""

    map: str
    """How scores become levels."""
    aggregate: Aggregation = "positive"
    """How a layer's influences become one score."""
    on_constant: OnConstant = "error"
    """What scores that are all equal give."""
    shuffle: Annotated[int | None, Field(ge=0)] = None
    """Seed by which layers exchange their scores first, as a control."""


class SparsityMapOptions(MapOptions):
    """How scores become sparsities."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "aggregate",
            lambda v: v["map"] != "uniform" and of_influence(v),
            "for scores of influence under the maps layerif, owl and dlp",
        ),
        Rule("epsilon", lambda v: v["map"] == "layerif", "with {map} layerif"),
        Rule(
            "smooth",
            lambda v: v["map"] == "layerif" and v.get("granularity") != "projection",
            "with {map} layerif and {granularity} layer",
        ),
        Rule("lam", lambda v: v["map"] in ("owl", "dlp"), "with {map} owl or dlp"),
        Rule(
            "orientation on_constant shuffle",
            lambda v: v["map"] in ("layerif", "owl", "dlp"),
            "with {map} layerif, owl or dlp",
        ),
    )

    map: SparsityMap = "layerif"
    """How scores become sparsities; layerif without smoothing is AlphaPruning's map."""
    granularity: Granularity = "layer"
    """What gets a sparsity of its own."""
    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Map layerif: half the relative spread of sparsities."""
    lam: Annotated[float | None, Field(ge=0, le=0.5), Shown("0.08 for owl, 0.15 for dlp")] = None
    """Maps owl and dlp: half the width of the band of sparsities."""
    smooth: bool = True
    """Map layerif: smooth the scores over neighbouring layers first; projections never are."""
    orientation: Annotated[
        Orientation | None, Shown("direct for layerif, inverse for owl and dlp")
    ] = None
    """direct prunes high scores more."""
    s_max: Annotated[float, Field(ge=0, le=1)] = 1.0
    """No layer or projection gets more than this."""


class CountsMapOptions(MapOptions):
    """How scores become whole numbers: experts, or ranks."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "aggregate",
            lambda v: v["map"] == "power" and of_influence(v),
            "for scores of influence with {map} power",
        ),
        Rule(
            "beta orientation normalise compat on_constant shuffle",
            lambda v: v["map"] == "power",
            "with {map} power",
        ),
        Rule("shape", lambda v: v["map"] == "mola", "with {map} mola"),
    )

    map: CountsMap = "power"
    """How scores become whole numbers: by a power of them, by depth alone (mola), or alike."""
    beta: Annotated[float, Field(gt=0)] = 3.0
    """Map power: the exponent; the larger, the more unequal."""
    orientation: Orientation = "direct"
    """direct gives layers of high score more."""
    normalise: ScoreScale = "minmax"
    """Map power: what is raised to beta; none takes scores as they are (AlphaLoRA)."""
    compat: CountsCompat = "none"
    """Map power: authors rounds as the published code of AlphaLoRA does."""
    shape: tuple[int | float, ...] = MOLA_SHAPE
    """Map mola: what each group of layers gets, to scale."""


class BitsMapOptions(MapOptions):
    """How scores become bits."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "aggregate",
            lambda v: v["map"] == "linear" and of_influence(v),
            "for scores of influence with {map} linear",
        ),
        Rule(
            "spread orientation on_constant shuffle",
            lambda v: v["map"] == "linear",
            "with {map} linear",
        ),
    )

    map: BitsMap = "linear"
    """How scores become bits."""
    granularity: Granularity = "layer"
    """What gets bits of its own."""
    spread: Annotated[float, Field(ge=0, le=6)] = 1.0
    """Map linear: the lowest and the highest score are this many bits from the total."""
    orientation: Orientation = "direct"
    """direct gives high scores more bits."""


class DepthMapOptions(MapOptions):
    """How scores decide which layers are kept."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "aggregate",
            lambda v: v["map"] == "highest" and of_influence(v),
            "for scores of influence with {map} highest",
        ),
        Rule(
            "orientation on_constant shuffle",
            lambda v: v["map"] == "highest",
            "with {map} highest",
        ),
    )

    map: DepthMap = "highest"
    """Which layers are kept: those of the highest scores, all but some evenly spaced ones
    (uniform), or all but the last ones before the very last two (last)."""
    orientation: Orientation = "direct"
    """direct keeps high scores, inverse low ones."""
