"""Scores: LayerScores of influence, and MetricScores, one number a layer from any other metric.

LayerScores say how training samples move the validation loss through each layer. The artifact is
the matrix, not a score: all aggregations are taken from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from layerif.artifacts.gradients import Collected, ProjectionInfo
from layerif.artifacts.naming import OfModule, check_modules
from layerif.core.choices import Aggregation, BlockGranularity, Normalise
from layerif.core.files import Kind, json_text, new_file, read_json, read_numbers, sync
from layerif.core.fingerprint import Fingerprint
from layerif.core.record import JsonArtifact, ModelInfo, Record, Setting
from layerif.errors import InputError
from layerif.plans.maps.scores import aggregate

FORMAT: Literal["layerif.scores/1"] = "layerif.scores/1"
METRIC_FORMAT: Literal["layerif.metric/1"] = "layerif.metric/1"
SCORES_FILE = "scores.json"
INFLUENCE_FILE = "influence.safetensors"
ARRAYS = ("influence", "projection_influence", "train_losses")


class BlockRecord(Record):
    """How one block was solved.

    Attributes:
        damping: lambda used; 0 in a silent block, None for an estimator without one.
        iterations, residual: of an estimator that solves a system, |H x - v| / |v|; else None.
        converged: whether the residual came down to the tolerance.
    """

    damping: float | None
    iterations: int | None = None
    residual: float | None = None
    converged: bool = True


class ScoringRecord(Collected):
    """How scores were made: all that changes them.

    Attributes:
        estimator: of influence.
        subspace_options: that the subspace was made with.
        block: what one inverse Hessian covers: each trainable `matrix` by itself, or all those of a
            `projection` or a `layer` together.
        normalise: `per_parameter` where influence through a block was divided by its d.
        damping: factor of the rule lambda = damping * mean(|g|^2) / d in each block; None where the
            estimator has no damping, or lambda is given.
        damping_value: lambda where it is given, the same in every block.
        tolerance, max_iterations: residual at which an iterative estimator stops, and its most
            iterations; None for one that is not iterative.
        sign: `helpful_positive`: positive influence means that the sample lowers the loss.
        silent_blocks: blocks in which every gradient is zero; they contribute nothing.
        blocks: how each block was solved, by its name.
        validation_loss: mean completion loss of the validation samples, nats per token.
        seconds: that collecting and solving took.
    """

    estimator: str
    subspace_options: dict[str, Any] = Field(default_factory=dict)
    block: BlockGranularity
    normalise: Normalise = "none"
    damping: float | None
    damping_value: float | None = None
    tolerance: float | None = None
    max_iterations: int | None = None
    sign: Literal["helpful_positive"]
    silent_blocks: list[str]
    blocks: dict[str, BlockRecord] = Field(default_factory=dict)
    validation_loss: float
    seconds: float


class DampingSweep(Record):
    """The same gradients solved at several dampings: what of the ranking of layers depends on it.

    Attributes:
        dampings: factors of the damping rule, ascending.
        scores: for each aggregation (dampings, layers).
        spearman: for each aggregation (dampings, dampings) rank correlation of the layers' scores;
            None where one of the two does not tell the layers apart.
        least: the smallest of those between different dampings.
        residuals: the largest of all blocks at each damping, None where no system is solved.
    """

    dampings: list[float]
    scores: dict[Aggregation, list[list[float]]]
    spearman: dict[Aggregation, list[list[float | None]]]
    least: dict[Aggregation, float | None]
    residuals: list[float | None]


class ScoresHeader(Record):
    """What `scores.json` holds; the aggregated scores are for people, and made again on reading."""

    format: Literal["layerif.scores/1"]
    model: ModelInfo
    record: ScoringRecord
    scores: dict[str, Any]
    projections: list[tuple[int, str, int]]
    damping_sweep: DampingSweep | None = None


@dataclass(frozen=True, eq=False)
class LayerScores:
    """Influence of every training sample through every layer and projection of a model.

    Attributes:
        influence: (layers, samples) predicted decrease of the validation loss when a sample is
            upweighted, through one layer; the sum of its projections' rows.
        projection_influence: (projections, samples) the same through one projection. Where a layer
            is one block, the share of a projection in the layer's: its gradient times its part of
            H^-1 v, which also holds what the other projections' gradients say.
        train_losses: (samples,) mean completion loss of each training sample, nats per token.
        projections: what each row of `projection_influence` is.
        model, record: which model, and how the scores were made.
        damping_sweep: the scores at other dampings, where those were asked for.
    """

    influence: NDArray[np.float64]
    projection_influence: NDArray[np.float64]
    train_losses: NDArray[np.float64]
    projections: tuple[ProjectionInfo, ...]
    model: ModelInfo
    record: ScoringRecord
    damping_sweep: DampingSweep | None = None

    def __post_init__(self) -> None:
        for name, values in self._arrays().items():
            if not np.isfinite(values).all():
                raise InputError(f"{name} holds values that are not finite")
        samples = self.train_losses.size
        if (
            self.train_losses.shape != (samples,)
            or self.influence.shape != (self.model.layers, samples)
            or self.projection_influence.shape != (len(self.projections), samples)
        ):
            raise InputError(
                f"influence of shape {self.influence.shape}, projection influence of shape "
                f"{self.projection_influence.shape} and train losses of shape "
                f"{self.train_losses.shape} do not belong to {self.model.layers} layers with "
                f"{len(self.projections)} projections"
            )
        if any(not 0 <= p.layer < self.model.layers for p in self.projections):
            raise InputError(f"a projection lies outside the {self.model.layers} decoder layers")

    @property
    def fingerprint(self) -> Fingerprint | None:
        """What the scores depend on; None for a model scored in memory."""
        return self.record.fingerprint

    def aggregate(self, how: Aggregation = "positive") -> NDArray[np.float64]:
        """(layers,) one score a layer: `all`, `positive`, `top` or `negative`."""
        return aggregate(self.influence, how)

    def aggregate_projections(self, how: Aggregation = "positive") -> NDArray[np.float64]:
        """(projections,) one score a projection; these add up to the layer's only for `all`."""
        return aggregate(self.projection_influence, how)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerScores):
            return NotImplemented
        mine, theirs = self._arrays(), other._arrays()
        return (
            (self.projections, self.model, self.record, self.damping_sweep)
            == (other.projections, other.model, other.record, other.damping_sweep)
        ) and all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]

    def _arrays(self) -> dict[str, NDArray[np.float64]]:
        return {name: getattr(self, name) for name in ARRAYS}

    def summary(self) -> dict[str, Any]:
        """What `scores.json` holds: the record and the aggregated scores, without the matrices."""
        header = ScoresHeader(
            format=FORMAT,
            model=self.model,
            record=self.record,
            scores={how: self.aggregate(how).tolist() for how in get_args(Aggregation)},
            projections=[(p.layer, p.name, p.numel) for p in self.projections],
            damping_sweep=self.damping_sweep,
        )
        unset = {"damping_sweep"} if self.damping_sweep is None else set()
        return header.model_dump(mode="json", exclude=unset)

    def save(self, folder: str | Path) -> None:
        """Write `influence.safetensors`, then `scores.json`, whose presence says all is there.

        Raises:
            InputError: they cannot be written, or files of these names are not of this kind.
        """
        from safetensors.numpy import save_file

        folder, kind = Path(folder), Kind(FORMAT.partition("/")[0])
        with new_file(folder / SCORES_FILE, kind) as last:
            last.write_text(json_text(self.summary()) + "\n", encoding="utf-8")
            with new_file(folder / INFLUENCE_FILE, kind) as part:
                save_file(
                    {name: np.ascontiguousarray(values) for name, values in self._arrays().items()},
                    part,
                    metadata={"format": FORMAT},
                )
                sync(part)
                # A summary never lies beside the matrix of another.
                (folder / SCORES_FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path) -> LayerScores:
        """Read a run folder back.

        Raises:
            InputError: the folder holds no scores, or they are damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"no run folder at {folder}; `layerif score` makes one")
        path, what = folder / SCORES_FILE, "the scores that `layerif score` writes"
        header = ScoresHeader.parse(read_json(path, what), str(path))
        arrays = read_numbers(folder / INFLUENCE_FILE, what)
        if missing := [name for name in ARRAYS if name not in arrays]:
            raise InputError(f"{folder / INFLUENCE_FILE} lacks {', '.join(missing)}")
        try:
            return cls(
                **{name: arrays[name] for name in ARRAYS},
                projections=tuple(
                    ProjectionInfo(layer=layer, name=name, numel=numel)
                    for layer, name, numel in header.projections
                ),
                model=header.model,
                record=header.record,
                damping_sweep=header.damping_sweep,
            )
        except InputError as error:
            raise InputError(f"the scores in {folder} are damaged: {error}") from None


class ProjectionScore(OfModule):
    """The score of one projection, by its canonical name (`layers.7.mlp.up_proj`), and its size."""

    score: float
    numel: int = Field(ge=1)


class MetricScores(JsonArtifact):
    """How a metric ranks the decoder layers of a model, and their projections.

    Attributes:
        metric: its name.
        options: its parameters.
        scores: one number a layer, in the metric's own unit.
        projections: one number a projection, layer by layer; None for a metric that knows layers
            alone. Only where the metric says so do these make up the layer's.
        model: of which model.
        calibration: text, tokens and seed that the activations come from, or task and number of its
            samples; None where the metric needs none.
        fingerprint: what all of it depends on; None for a model measured in memory.
    """

    format: Literal["layerif.metric/1"] = METRIC_FORMAT
    metric: str
    options: dict[str, Any] = Field(default_factory=dict)
    scores: list[float] = Field(min_length=1)
    projections: list[ProjectionScore] | None = None
    model: ModelInfo
    calibration: dict[str, Any] | None = None
    seconds: float
    setting: Setting
    fingerprint: Fingerprint | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.scores) != self.model.layers:
            raise ValueError(
                f"there are {len(self.scores)} scores, but {self.model.name} has "
                f"{self.model.layers} decoder layers"
            )
        if self.projections is not None:
            check_modules(self.projections, self.model.layers)
            sizes = [0] * self.model.layers
            for projection in self.projections:
                sizes[projection.layer] += projection.numel
            if sizes != self.model.layer_sizes:
                raise ValueError(
                    f"the projections have {sizes} parameters in each layer; expected "
                    f"{self.model.layer_sizes}"
                )
        return self
