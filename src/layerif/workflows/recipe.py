"""A recipe: one YAML file that says all of a run, checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from layerif.artifacts import Record
from layerif.core.choices import (
    Aggregation,
    BesidePlan,
    Dtype,
    HiddenStatesPlace,
    Orientation,
    Preset,
    PromptStyle,
    PruningMethod,
    TaskScoring,
)
from layerif.core.files import brief
from layerif.core.options import IdleOptionError, Options, idle, refuse_idle
from layerif.core.record import MOST_FAULTS, faults_of
from layerif.data.options import SampleOptions, TaskOptions
from layerif.errors import FieldError, InputError
from layerif.influence.options import ScoreOptions
from layerif.workflows.document import Document
from layerif.workflows.idle import STAGES
from layerif.workflows.options import ExpertsStudy, Seeds

# Said once for all stages.
SHARED = ("seed", "data_dir")

# Numbers of rows that are as many as there are, where a recipe does not give them.
COUNTS = {"score": ("train_samples", "validation_samples"), "finetune": ("validation_samples",)}


class ScoreStage(TaskOptions, SampleOptions, ScoreOptions):
    """Whose influence is measured, and on what."""

    preset: Preset | None = None
    adapter: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, value: Any) -> Any:
        """What a preset says, under what the recipe itself says."""
        if not isinstance(value, dict) or value.get("preset") not in cls.presets:
            return value
        return {**cls.preset_options(value["preset"], value), **value}


class SparsityStage(Record):
    """The sparsity plan, and those beside it; rounds and their tokens are of the marginal one."""

    target: float = Field(ge=0, le=1)
    aggregate: Aggregation = "positive"
    epsilon: float = Field(0.1, ge=0, le=1)
    smooth: bool = True
    orientation: Orientation = "direct"
    beside: list[BesidePlan] = Field(default_factory=list)
    rounds: int = Field(5, ge=1)
    round_tokens: int = Field(8192, ge=1)


class CountsStage(Record):
    """A plan of whole numbers: of experts, or of LoRA ranks."""

    total: int = Field(ge=1)
    aggregate: Aggregation = "positive"
    beta: float = Field(3.0, gt=0)
    orientation: Orientation = "direct"


class FinetuneStage(ExpertsStudy):
    """The expert plan trained on the task of the scores, beside the uniform one and `plans`."""

    plans: list[str] = Field(default_factory=list)
    """More plans: mola-2468, alphalora, random, lora, or a plan's .json file."""
    seeds: Seeds = (0,)
    """Seeds of the training runs of each plan."""


class PruneStage(Record):
    """How the sparsity plan is carried out."""

    method: PruningMethod = "wanda"
    nm: str | None = None
    calibration: str = "python-docs"
    samples: int = Field(32, ge=1)
    context_length: int = Field(512, ge=2)
    batch_tokens: int = Field(2048, ge=1)
    hidden_states: HiddenStatesPlace = "auto"

    @field_validator("nm")
    @classmethod
    def _is_pattern(cls, nm: str | None) -> str | None:
        from layerif.compress.pruning.pattern import Pattern

        try:
            return nm if nm is None else str(Pattern.parse(nm))
        except InputError as error:
            raise ValueError(str(error)) from None


class EvaluateStage(Record):
    """What the models are measured on; `samples` and `max_tokens` left out take everything."""

    tasks: list[str] = Field(min_length=1)
    style: PromptStyle = "alpaca"
    template_options: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    scoring: TaskScoring = "likelihood"
    samples: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=2)
    max_length: int = Field(512, ge=2)
    context_length: int = Field(512, ge=2)
    batch_tokens: int = Field(2048, ge=1)


class Recipe(Record):
    """The whole of a run, from a model to a table that compares its pruned versions."""

    model: str
    out: str
    dtype: Dtype = "float32"
    device: str = "auto"
    seed: int = Field(0, ge=0)
    data_dir: str | None = None
    score: ScoreStage
    sparsity: SparsityStage
    experts: CountsStage | None = None
    ranks: CountsStage | None = None
    finetune: FinetuneStage | None = None
    prune: PruneStage = PruneStage()
    evaluate: EvaluateStage

    @model_validator(mode="before")
    @classmethod
    def _with_shared(cls, value: Any) -> Any:
        """What is said once for all stages, in each that takes it."""
        if not isinstance(value, dict):
            return value
        shared = {name: value[name] for name in SHARED if value.get(name) is not None}
        found = dict(value)
        for name, field in cls.model_fields.items():
            own, stage = value.get(name), _stage_of(field.annotation)
            if isinstance(own, dict) and stage is not None:
                if said := [key for key in SHARED if key in own]:
                    raise ValueError(f"{name}.{said[0]}: it is said once, outside the stages")
                found[name] = own | {k: v for k, v in shared.items() if k in stage.model_fields}
        return found

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a recipe.

        Raises:
            InputError: no such file, not YAML, a field twice, missing, unknown or wrong; with line.
        """
        return cls.of(Document.read(path))

    @classmethod
    def of(cls, document: Document) -> Self:
        """The recipe that a YAML file holds.

        Raises:
            InputError: a field is missing, unknown or wrong; with the line.
        """
        try:
            recipe = cls.model_validate(document.value)
        except ValidationError as error:
            faults = "; ".join(
                f"line {document.line(*path)}: {'.'.join(map(str, path))}: {fault}"
                for path, fault in faults_of(error, cls)
            )
            raise FieldError(f"the recipe {document.path}: {brief(faults, MOST_FAULTS)}") from None
        for stage, rules in STAGES.items():
            written = document.value.get(stage) or {}
            given = {name for name, value in written.items() if value is not None}
            try:
                refuse_idle(rules, given, recipe._beside(stage))
            except IdleOptionError as error:
                line = document.line(stage, error.option)
                raise FieldError(f"{document.path}, line {line}: {stage}.{error}") from None
        return recipe

    @property
    def calibrates(self) -> bool:
        """Whether pruning or a plan beside reads calibration text."""
        return "calibration" not in idle(STAGES["prune"], self._beside("prune"))

    def text(self) -> str:
        """The recipe with the defaults written out, but those that have no effect, and numbers of
        rows, which give way to what there is.
        """
        value = self.model_dump(mode="json")
        for stage, rules in STAGES.items():
            if value[stage] is not None:
                for name in idle(rules, self._beside(stage)):
                    del value[stage][name]
        for own in value.values():
            if isinstance(own, dict):
                for name in SHARED:
                    own.pop(name, None)
        for stage, names in COUNTS.items():
            written: Record | None = getattr(self, stage)
            for name in names:
                if written is not None and name not in written.model_fields_set:
                    value[stage].pop(name, None)
        return yaml.safe_dump(value, sort_keys=False)

    def _beside(self, stage: str) -> dict[str, Any]:
        """The values of a stage, and those of others that decide which of them have an effect."""
        own: Record | None = getattr(self, stage)
        values = {} if own is None else own.model_dump()
        if stage == "score":
            # Its style is that of a task to calibrate on, too.
            values["tasks"] = [self.score.task, self.prune.calibration]
        elif stage == "prune":
            values["beside"] = self.sparsity.beside
        return values


def _stage_of(annotation: Any) -> type[Options] | None:
    """The class of options that a field of a recipe is of."""
    kinds = [annotation, *get_args(annotation)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Options)), None)
