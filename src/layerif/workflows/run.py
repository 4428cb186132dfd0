"""A run folder from Python: the same stages, resumed and reused, that the commands have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerif.artifacts import (
    DroppedLayers,
    Finetuning,
    LayerScores,
    Manifest,
    MetricScores,
    Plan,
    QuantizedManifest,
    Results,
)
from layerif.compress.pruning.options import PruneOptions
from layerif.compress.pruning.registry import reads_text as pruner_reads_text
from layerif.compress.quantization.options import QuantizedFolderOptions
from layerif.compress.quantization.options import reads_text as quantizer_reads_text
from layerif.core.files import cache_folder
from layerif.core.options import takes
from layerif.data import Task, load_calibration, load_corpus, load_sources, load_task
from layerif.data.options import SampleOptions
from layerif.errors import InputError
from layerif.evaluation.options import EvaluateOptions
from layerif.finetuning.options import FinetuneOptions, RowOptions
from layerif.influence.options import ScoreOptions
from layerif.metrics.options import MeasureOptions
from layerif.metrics.registry import complete_options, reads_text
from layerif.model.options import PlacedModelOptions
from layerif.search.options import SearchOptions
from layerif.search.searching import of_kind
from layerif.workflows.dropping import drop_into
from layerif.workflows.finetuning import finetune_into
from layerif.workflows.searching import search_into
from layerif.workflows.stages import (
    evaluate_into,
    measure_into,
    prune_into,
    quantize_into,
    score_into,
)


class ScoringRun(SampleOptions, ScoreOptions):
    """Options of `Run.score`."""


class FinetuningRun(RowOptions, FinetuneOptions):
    """Options of `Run.finetune`."""


class Run:
    """Results on one model in one folder; finished work is reused, interrupted work goes on.

        run = layerif.Run("runs/mine", model="smollm2", task="agreement")
        plan = layerif.allocate(run.score(rank=8), "sparsity", 0.5)
        run.prune(plan, name="layerif")
        results = run.evaluate(["agreement", "python-docs"], of="layerif")

    A result from other options is refused, as a command refuses it, unless `overwrite` is set.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: str,
        task: str | Path | Task | None = None,
        calibration: str | Path = "python-docs",
        data_dir: str | Path | None = None,
        overwrite: bool = False,
        **opening: Any,
    ) -> None:
        """Name what the work is on; nothing is opened or written yet.

        Args:
            folder: of the results; made when the first is written.
            model: hub id, model folder, .gguf file, or an alias, as `open_model` takes it.
            task: that layers are scored for and adapters trained on.
            calibration: corpus or text file for pruning, metrics and searches.
            data_dir: folder of parquet data sets, instead of the hub.
            overwrite: replace results from other options.
            opening: dtype, device, device_map and trust_remote_code, as `open_model` takes them.

        Raises:
            InputError: an argument of `open_model` is out of its range.
        """
        self.folder = Path(folder)
        self._model = PlacedModelOptions(model=model, **opening)
        self._task, self._calibration = task, calibration
        self._data: dict[str, Any] = {"data_dir": data_dir}
        self._overwrite = overwrite

    @property
    def task(self) -> Task:
        """The task.

        Raises:
            InputError: none was named, or it cannot be loaded.
        """
        if self._task is None:
            raise InputError("this needs a task; name one: Run(..., task='agreement')")
        if not isinstance(self._task, Task):
            self._task = load_task(self._task, **self._data)
        return self._task

    @takes(ScoringRun)
    def score(self, *, options: ScoringRun) -> LayerScores:
        """`score` of the task's rows, in the folder itself."""
        data = self.task
        return score_into(
            self.folder,
            *self._model.open(),
            data,
            train=options.rows(data, "train", options.seed),
            validation=options.rows(data, "validation", options.seed),
            options=options.part(ScoreOptions),
            overwrite=self._overwrite,
        )

    @takes(MeasureOptions)
    def metric(self, metric: str, *, options: MeasureOptions, **of_metric: Any) -> MetricScores:
        """`metric_scores` on the calibration text, in `<metric>.json`."""
        text = None
        if reads_text(metric, complete_options(metric, of_metric)):
            text = load_corpus(self._calibration, **self._data)
        return measure_into(
            self.folder / f"{metric}.json",
            *self._model.open(),
            metric,
            on=text,
            options=options,
            of_metric=of_metric,
            overwrite=self._overwrite,
        )

    @takes(SearchOptions, of_kind)
    def search(
        self,
        total: float,
        *,
        options: SearchOptions,
        kind: str = "sparsity",
        name: str = "searched",
    ) -> Plan:
        """`search_plan` for any kind of plan that can be searched for, in `<name>.json`.

        Args:
            total: as `search_plan` takes it; for depth the layers that are dropped.
        """
        return search_into(
            self.folder / f"{name}.json",
            *self._model.open(),
            total,
            calibration=load_corpus(self._calibration, **self._data),
            kind=kind,
            options=options,
            overwrite=self._overwrite,
        )

    @takes(PruneOptions)
    def prune(
        self, plan: Plan | float | None, *, options: PruneOptions, name: str = "pruned"
    ) -> Manifest:
        """A pruned model, in the folder `<name>`."""
        text = None
        if pruner_reads_text(options.method):
            text = load_calibration(self._calibration, **self._data)
        return prune_into(
            self.folder / name,
            *self._model.open(),
            plan,
            calibration=text,
            options=options,
            overwrite=self._overwrite,
        )

    def drop(self, plan: Plan, *, name: str = "dropped") -> DroppedLayers:
        """A model without the layers that a plan of depth drops, in the folder `<name>`."""
        return drop_into(self.folder / name, *self._model.open(), plan, overwrite=self._overwrite)

    @takes(QuantizedFolderOptions)
    def quantize(
        self, plan: Plan | int, *, options: QuantizedFolderOptions, name: str = "quantized"
    ) -> QuantizedManifest:
        """A quantised model, in the folder `<name>`."""
        text = None
        if quantizer_reads_text(options.values()):
            text = load_calibration(self._calibration, **self._data)
        return quantize_into(
            self.folder / name,
            *self._model.open(),
            plan,
            calibration=text,
            options=options,
            overwrite=self._overwrite,
        )

    @takes(FinetuningRun)
    def finetune(
        self, plan: Plan | None, *, options: FinetuningRun, name: str = "adapter"
    ) -> Finetuning:
        """An adapter trained on the task, in the folder `<name>`."""
        train, validation = options.rows(self.task, options.seed)
        return finetune_into(
            self.folder / name,
            *self._model.open(),
            self.task,
            train=train,
            validation=validation,
            plan=plan,
            options=options.part(FinetuneOptions),
            overwrite=self._overwrite,
        )

    @takes(EvaluateOptions)
    def evaluate(
        self, on: Sequence[str | Path], *, options: EvaluateOptions, of: str | None = None
    ) -> Results:
        """`evaluate` on tasks and corpora, in `<of>-results.json`.

        Args:
            on: their names.
            options: as `evaluate` takes them.
            of: name of a model that `prune` or `quantize` wrote here; None for the model itself.

        Raises:
            InputError: there is no such model here.
        """
        model = self._model
        if of is not None:
            if not (self.folder / of).is_dir():
                raise InputError(f"there is no model {of!r} in {self.folder}")
            model = model.but(model=str(self.folder / of))
        return evaluate_into(
            self.folder / f"{of or 'dense'}-results.json",
            *model.open(),
            load_sources(on, **self._data),
            options=options,
            cache=cache_folder() / "likelihoods",
            overwrite=self._overwrite,
        )
