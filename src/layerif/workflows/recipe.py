"""A recipe: one YAML file that says all of a run, checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from layerif.artifacts import Record
from layerif.compress.pruning.options import PruneOptions
from layerif.compress.pruning.registry import reads_text
from layerif.core.aliases import MODEL_HELP
from layerif.core.choices import Aggregation, Dtype, Orientation, Preset
from layerif.core.files import brief
from layerif.core.options import IdleOptionError, Options, Rule, Values, idle, refuse_idle
from layerif.core.record import MOST_FAULTS, faults_of
from layerif.data.options import CalibrationOptions, PromptOptions, SampleOptions, TaskOptions
from layerif.data.registry import CORPORA
from layerif.errors import FieldError
from layerif.evaluation.options import EvaluateOptions
from layerif.influence.options import ScoreOptions
from layerif.metrics.registry import METRICS
from layerif.model.options import AdapterOptions
from layerif.plans.named import INFLUENCE, PLANS, plans_among
from layerif.workflows.document import Document
from layerif.workflows.options import (
    DEPTH_COMPARED,
    MODELS_COMPARED,
    BitsStudy,
    DepthStudy,
    ExpertsStudy,
    Seeds,
)

# Said once for all stages.
SHARED = ("seed", "data_dir")


class ScoreStage(TaskOptions, SampleOptions, AdapterOptions, ScoreOptions):
    """Whose influence is measured, and on what."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *TaskOptions.rules,
        *AdapterOptions.rules,
        *ScoreOptions.rules,
    )

    preset: Preset | None = None
    """paper: LayerIF's own setting in place of the defaults; what is given wins."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, value: Any) -> Any:
        """What a preset says, under what the recipe itself says."""
        if not isinstance(value, dict) or value.get("preset") not in cls.presets:
            return value
        return {**cls.preset_options(value["preset"], value), **value}


class SparsityStage(Options):
    """The sparsity plan, and those beside it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "rounds round_tokens",
            lambda v: any(
                plan.searched is not None for plan in plans_among(v["beside"], "sparsity")
            ),
            "where a plan that is searched for, such as marginal, is in {beside}",
        ),
        Rule(
            "evolution_seconds",
            lambda v: "evolution" in v["beside"],
            "where evolution is in {beside}",
        ),
    )

    target: float = Field(ge=0, le=1)
    """Fraction of zeros over all projections of the decoder layers."""
    aggregate: Aggregation = "positive"
    """How a layer's influences become one score."""
    epsilon: float = Field(0.1, ge=0, le=1)
    """Half the relative spread of sparsities between layers."""
    smooth: bool = True
    """Smooth scores over neighbouring layers."""
    orientation: Orientation = "direct"
    """direct prunes layers of high score more, inverse less."""
    beside: list[Annotated[str, PLANS["sparsity"]]] = Field(default_factory=list)
    """Plans measured beside it."""
    rounds: int = Field(5, ge=1)
    """Rounds of the plan marginal, each a pruning and a backward pass."""
    round_tokens: int = Field(8192, ge=1)
    """Tokens of each round's gradient, and held out to judge it."""
    evolution_seconds: float = Field(600, gt=0)
    """Seconds of the search for the plan evolution."""

    @field_validator("beside")
    @classmethod
    def _are_others(cls, names: list[str]) -> list[str]:
        if always := [name for name in names if name in ("uniform", "layerif")]:
            raise ValueError(f"the plan {always[0]} is measured in every run; leave it out")
        return names


class CountsStage(Options):
    """A plan of whole numbers: of experts, or of LoRA ranks."""

    total: int = Field(ge=1)
    """Their sum over all layers."""
    aggregate: Aggregation = "positive"
    """How a layer's influences become one score."""
    beta: float = Field(3.0, gt=0)
    """Exponent of the map."""
    orientation: Orientation = "direct"
    """direct gives layers of high score more, inverse less."""


class FinetuneStage(ExpertsStudy):
    """The expert plan trained on the task of the scores, beside the uniform one and `plans`."""

    plans: list[str] = Field(default_factory=list)
    """More plans: mola-2468, alphalora, random, lora, or a plan's .json file."""
    seeds: Seeds = (0,)
    """Seeds of the training runs of each plan."""


class BitsStage(BitsStudy):
    """The model quantised, by a plan of bits and by the uniform one."""

    rules: ClassVar[tuple[Rule, ...]] = (*BitsStudy.rules, *MODELS_COMPARED)

    plans: list[Annotated[str, PLANS["bits"]]] = Field(default_factory=lambda: ["quadratic"])
    """Plans measured beside the uniform one."""


class DepthStage(DepthStudy):
    """The model without some of its layers, by several plans."""

    rules: ClassVar[tuple[Rule, ...]] = DEPTH_COMPARED

    plans: list[Annotated[str, PLANS["depth"]]] = Field(
        default_factory=lambda: ["shortlist", "block_influence"], min_length=1
    )
    """Plans measured; the others are compared with the first."""


def _planned_by_text(values: Values) -> bool:
    """Whether a plan beside LayerIF's reads calibration text."""
    plans = plans_among(values["beside"], "sparsity")
    metrics = [plan.metric for plan in plans if plan.metric not in (None, INFLUENCE)]
    return any(plan.searched is not None for plan in plans) or any(
        METRICS.find(str(metric)).reads_text for metric in metrics
    )


class PruneStage(PruneOptions, CalibrationOptions):
    """How the sparsity plan is carried out."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "calibration calibration_samples context_length batch_tokens",
            lambda v: reads_text(v["method"]) or _planned_by_text(v),
            "for methods and plans beside that read calibration text, such as wanda and sparsegpt, "
            "and owl, dlp and marginal",
        ),
        Rule(
            "hidden_states all_experts",
            lambda v: reads_text(v["method"]),
            "for methods that read calibration text, such as wanda and sparsegpt",
        ),
    )

    calibration: Annotated[str, CORPORA] = "python-docs"
    """A text file, a task (its training rows), self (text that the model writes), or a corpus."""


class EvaluateStage(PromptOptions, EvaluateOptions):
    """What the models are measured on; `samples` and `max_tokens` left out take everything."""

    rules: ClassVar[tuple[Rule, ...]] = (*EvaluateOptions.rules, *PromptOptions.rules)

    tasks: list[str] = Field(min_length=1)
    """Tasks and corpora, see `layerif tasks`."""


class Recipe(Record):
    """The whole of a run, from a model to a table that compares its pruned versions."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: str = Field(description=MODEL_HELP)
    out: str
    """Run folder: scores, plans, pictures, results and the pruned models."""
    dtype: Dtype = "float32"
    """Precision the model runs in."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..., or auto."""
    seed: int = Field(0, ge=0)
    """Seed of all draws; splits do not depend on it."""
    data_dir: str | None = None
    """Folder of parquet data sets, instead of the hub."""
    score: ScoreStage
    sparsity: SparsityStage
    experts: CountsStage | None = None
    ranks: CountsStage | None = None
    finetune: FinetuneStage | None = None
    prune: PruneStage = PruneStage()
    bits: BitsStage | None = None
    depth: DepthStage | None = None
    evaluate: EvaluateStage

    @classmethod
    def stages(cls) -> dict[str, type[Options]]:
        """The stages by name, and the class of options of each."""
        return {
            name: kind
            for name, field in cls.model_fields.items()
            for kind in (field.annotation, *get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, Options)
        }

    @model_validator(mode="before")
    @classmethod
    def _with_shared(cls, value: Any) -> Any:
        """What is said once for all stages, in each that takes it."""
        if not isinstance(value, dict):
            return value
        shared = {name: value[name] for name in SHARED if value.get(name) is not None}
        found = dict(value)
        for name, stage in cls.stages().items():
            own = value.get(name)
            if isinstance(own, dict):
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
        for stage, kind in cls.stages().items():
            written = document.value.get(stage) or {}
            given = {name for name, value in written.items() if value is not None}
            try:
                refuse_idle(kind.rules, given, recipe.beside(stage))
            except IdleOptionError as error:
                raise document.fault(f"{stage}.{error}", stage, error.option) from None
        return recipe

    @property
    def calibrates(self) -> bool:
        """Whether pruning or a plan beside reads calibration text."""
        return "calibration" not in idle(PruneStage.rules, self.beside("prune"))

    def text(self) -> str:
        """The recipe with the defaults written out, but those that have no effect, and numbers of
        rows, which give way to what there is.
        """
        value = self.model_dump(mode="json")
        for stage, kind in self.stages().items():
            if value[stage] is not None:
                for name in idle(kind.rules, self.beside(stage)) & value[stage].keys():
                    del value[stage][name]
        for own in value.values():
            if isinstance(own, dict):
                for name in SHARED:
                    own.pop(name, None)
        for stage in self.stages():
            written: Options | None = getattr(self, stage)
            for name in () if written is None else written.left_out():
                value[stage].pop(name, None)
        return yaml.safe_dump(value, sort_keys=False)

    def beside(self, stage: str) -> dict[str, Any]:
        """The values of a stage, and those of others that decide which of them have an effect."""
        own: Record | None = getattr(self, stage)
        values = {} if own is None else own.model_dump()
        if stage == "score":
            # Its style is that of a task to calibrate on, too.
            values["tasks"] = [self.score.task, self.prune.calibration]
        elif stage == "prune":
            values["beside"] = self.sparsity.beside
        return values
