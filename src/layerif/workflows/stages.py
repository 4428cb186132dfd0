"""The stages of scoring, metrics, pruning and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from layerif.artifacts import (
    GRADIENTS,
    PRUNED,
    QUANTIZED,
    Fingerprint,
    LayerScores,
    Manifest,
    MetricScores,
    Plan,
    QuantizedManifest,
    Results,
    hash_texts,
)
from layerif.artifacts.gradients import GRADIENTS_FOLDER
from layerif.compress.pruning.options import PruneOptions
from layerif.compress.pruning.runner import prune
from layerif.compress.pruning.saving import refuse_packed, save_pruned
from layerif.compress.quantization.compressor import refuse_coded
from layerif.compress.quantization.grid import Coded
from layerif.compress.quantization.options import (
    GridOptions,
    QuantizedFolderOptions,
    QuantizeOptions,
)
from layerif.compress.quantization.packing import check_packable
from layerif.compress.quantization.runner import as_plan, bits_of, quantize
from layerif.compress.quantization.saving import save_quantized
from layerif.compress.saving import refuse_adapters, saved_size
from layerif.core.checkpoint import Steps
from layerif.core.options import Options
from layerif.core.processes import is_first
from layerif.core.progress import note
from layerif.core.record import versions
from layerif.data import Corpus, Example, SelfText, Task
from layerif.data.rows import Rows
from layerif.errors import InputError
from layerif.evaluation.evaluate import evaluate
from layerif.evaluation.harness import HarnessTasks, harness_results
from layerif.evaluation.options import EvaluateOptions
from layerif.influence.collecting import collect
from layerif.influence.estimators.registry import ESTIMATORS
from layerif.influence.options import CollectOptions, ScoreOptions, SolveOptions
from layerif.influence.scoring import score
from layerif.influence.solving import solve
from layerif.influence.store import Gradients
from layerif.likelihood import rows_within
from layerif.metrics.measuring import metric_scores
from layerif.metrics.options import MeasureOptions
from layerif.metrics.registry import complete_options, is_seeded, reads_model, reads_text
from layerif.model.layers import find_decoder_layers
from layerif.model.opening import Tokenizer, setting
from layerif.model.precision import stored_precision, word_of
from layerif.plans.allocate import note_cautions
from layerif.workflows.solving import SCORING, saved
from layerif.workflows.stage import Stage, content_of, fingerprint_of, hash_samples, json_stage

PRUNING = Stage(PRUNED, Manifest.load)
QUANTIZING = Stage(QUANTIZED, QuantizedManifest.load)


@dataclass(frozen=True)
class MetricSamples:
    """Samples of a task, for a metric that takes some in place of text."""

    task: Task
    train: Sequence[Example]
    validation: Sequence[Example]


def score_into(  # noqa: PLR0913  # where to, the model, what on, the options
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    task: Task | Corpus,
    *,
    train: Rows,
    validation: Rows,
    options: ScoreOptions,
    keep_gradients: bool = False,
    overwrite: bool = False,
) -> LayerScores:
    """`score` saved to a run folder; finished batches and blocks survive an interruption.

    Gradients that the folder keeps of the same samples, model and subspace are solved, and no
    model is run. After an interruption, another estimator goes on from the same batches.

    Of several processes each comes here with the same, and runs its share of the batches.

    Args:
        keep_gradients: leave the gradients in the folder.

    Raises:
        InputError: as `score` and `resumable`; or the folder holds scores from different settings.
        NumericalError: as `score`.
    """
    data = hash_samples(train, validation)
    wanted = fingerprint_of(model, data, options.recorded(), tokenizer)
    if keep_gradients and options.keep not in ("auto", "disk"):
        raise InputError(
            f"keep_gradients keeps gradients on disk, and keep={options.keep!r} does not; leave "
            "out one of the two"
        )
    collecting = options.part(CollectOptions)
    solving = set(SolveOptions.model_fields) - set(CollectOptions.model_fields)
    kept = {name: value for name, value in wanted.options.items() if name not in solving}
    of_gradients = Fingerprint(model=wanted.model, data=data, options=kept)
    place = folder / GRADIENTS_FOLDER
    factors = ESTIMATORS.find(options.estimator).by_position
    samples: dict[str, Any] = {
        "train": train,
        "validation": validation,
        "task": {"name": task.name, **task.origin},
    }

    def work(steps: Steps) -> LayerScores:
        gradients = _kept_gradients(place, of_gradients, factors=factors)
        reused = gradients is not None
        if keep_gradients and not reused:
            on_disk = collecting.but(keep="disk")
            gradients = collect(
                model, tokenizer, **samples, options=on_disk, factors=factors, steps=steps
            )
        if gradients is None:
            scores = score(model, tokenizer, **samples, options=options, steps=steps)
        else:
            scores = solve(gradients, options=options.part(SolveOptions), steps=steps)
        scores = saved(scores, wanted, folder)
        if gradients is not None and not reused and is_first():
            gradients.keep(place, of_gradients)
        return scores

    return SCORING.run(folder, wanted, work, overwrite=overwrite, resumed_by=of_gradients)


def _kept_gradients(folder: Path, wanted: Fingerprint, *, factors: bool) -> Gradients | None:
    """The gradients that a run folder keeps, where they are of the very samples and subspace."""
    if not GRADIENTS.is_finished(folder):
        return None
    try:
        found = Gradients.open(folder)
    except InputError as error:
        note(f"collected again: {error}")
        return None
    if found.record.fingerprint != wanted or (factors and not found.factors):
        return None
    note(f"the gradients in {folder} are reused: no model is run")
    return found


def measure_into(
    path: Path,
    model: Any,
    tokenizer: Tokenizer | None,
    metric: str,
    *,
    on: Corpus | MetricSamples | None,
    options: MeasureOptions,
    of_metric: dict[str, Any],
    overwrite: bool = False,
) -> MetricScores:
    """`metric_scores` with `options`, saved as JSON.

    Args:
        model, tokenizer: for a metric that does not read the model a skeleton, and None, will do.
        on: text for a metric that reads some, or samples for one that takes some; else unused.
        options: how much of it, and the seed of what is drawn.
        of_metric: the metric's own options.

    Raises:
        InputError: as `metric_scores`; or the file holds scores from different settings.
        NumericalError: as `metric_scores`.
    """
    of_metric = complete_options(metric, of_metric)
    asked: dict[str, Any] = {"metric": metric, **of_metric}
    texts: list[Any] = []
    if is_seeded(metric, of_metric):
        asked["seed"] = options.seed
    given: dict[str, Any] = {}
    if isinstance(on, MetricSamples):
        asked |= {"batch_tokens": options.batch_tokens, "max_length": options.max_length}
        texts = [[astuple(e) for e in on.train], [astuple(e) for e in on.validation]]
        origin = {"name": on.task.name, **on.task.origin}
        given = {"train": on.train, "validation": on.validation, "task": origin}
    elif reads_text(metric, of_metric) and on is not None:
        asked |= {n: v for n, v in options.values().items() if n != "max_length"}
        texts, given = [on.text("calibration")], {"calibration": on}
    if reads_model(metric, of_metric):
        wanted = fingerprint_of(model, hash_texts(texts), asked, tokenizer if texts else None)
    else:
        shape = [[p.key, p.numel] for p in find_decoder_layers(model).projections]
        wanted = Fingerprint(
            model=hash_texts(shape), data=hash_texts(texts), options={**asked, **versions()}
        )

    def work(_steps: Steps) -> MetricScores:
        return metric_scores(
            model, metric, options=options, tokenizer=tokenizer, **given, **of_metric
        )

    return json_stage(path, wanted, MetricScores, work, overwrite=overwrite)


def prune_into(
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    plan: Plan | float | None,
    *,
    calibration: Corpus | SelfText | None,
    options: PruneOptions,
    overwrite: bool = False,
) -> Manifest:
    """`prune` with `options`, in place and saved to a model folder; finished layers survive.

    Where the folder already holds this result, `model` is left as it is.

    Raises:
        InputError: as `prune` and `resumable`; or the folder holds a model pruned otherwise.
        NumericalError: as `prune`.
    """
    refuse_adapters(model)
    refuse_packed(find_decoder_layers(model).projections)
    wanted = _fingerprint_of_change(model, tokenizer, plan, calibration, options)

    def work(steps: Steps) -> Manifest:
        # The layers as they are finished, and then all of the model.
        sizes = [p.weight.nbytes for p in find_decoder_layers(model).projections]
        what = "the pruned model and its layers as they are finished"
        steps.reserve(sum(sizes) + saved_size(model), what, "*.safetensors")
        if isinstance(plan, Plan):
            note_cautions(plan)
        manifest = prune(
            model,
            plan,
            options=options,
            tokenizer=tokenizer,
            calibration=calibration,
            steps=steps,
        )
        manifest = manifest.model_copy(update={"fingerprint": wanted})
        return save_pruned(model, tokenizer, manifest, folder)

    return PRUNING.run(folder, wanted, work, overwrite=overwrite)


def quantize_into(
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    plan: Plan | int,
    *,
    calibration: Corpus | SelfText | None,
    options: QuantizedFolderOptions,
    overwrite: bool = False,
) -> QuantizedManifest:
    """`quantize` with `options`, in place and saved to a model folder; finished layers survive.

    Where the folder already holds this result, `model` is left as it is.

    Raises:
        InputError: as `quantize`, `check_packable` and `resumable`; or the folder holds a model
            quantised otherwise.
        NumericalError: as `quantize`.
        MissingDependencyError: a folder of packed integers needs compressed-tensors.
    """
    refuse_adapters(model)
    layers = find_decoder_layers(model)
    refuse_coded(layers.projections)
    plan = as_plan(plan, layers)
    packed: dict[str, Coded] | None = None
    if options.format != "float":
        grid = options.part(GridOptions)
        check_packable(model, bits_of(plan, layers), grid, options.embeddings)
        packed = {}
    wanted = _fingerprint_of_change(model, tokenizer, plan, calibration, options)

    def work(steps: Steps) -> QuantizedManifest:
        # The integers of layers as they are finished, and then all of the model.
        numel = sum(p.numel for p in layers.projections)
        what = "the quantised model and its layers as they are finished"
        steps.reserve(numel + saved_size(model), what, "*.safetensors")
        manifest = quantize(
            model,
            plan,
            options=options.part(QuantizeOptions),
            tokenizer=tokenizer,
            calibration=calibration,
            steps=steps,
            keep=None if packed is None else packed.__setitem__,
        )
        manifest = manifest.model_copy(update={"fingerprint": wanted})
        return save_quantized(model, tokenizer, manifest, folder, packed=packed)

    return QUANTIZING.run(folder, wanted, work, overwrite=overwrite)


def _fingerprint_of_change(
    model: Any,
    tokenizer: Tokenizer,
    plan: Plan | float | None,
    calibration: Corpus | SelfText | None,
    options: Options,
) -> Fingerprint:
    """What a changed model depends on; text and its draw only where the method reads any."""
    asked = options.recorded()
    asked["plan"] = plan.allocation if isinstance(plan, Plan) else plan
    if isinstance(plan, Plan) and plan.modules is not None:
        asked["modules"] = {module.module: module.level for module in plan.modules}
    texts: list[str] = []
    if isinstance(calibration, Corpus):
        texts = [calibration.text("calibration")]
    elif calibration is not None:
        # What the model writes follows from its weights and the seed.
        texts = [calibration.name]
    precision = word_of(stored_precision(model))
    if precision != setting(model).dtype:
        asked["precision"] = precision
    return fingerprint_of(model, hash_texts(texts), asked, tokenizer if texts else None)


def evaluate_into(
    path: Path | None,
    model: Any,
    tokenizer: Tokenizer,
    on: Sequence[Task | Corpus],
    *,
    options: EvaluateOptions,
    harness: HarnessTasks | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
) -> Results:
    """`evaluate` with `options`, saved as JSON; with a cache, finished batches survive.

    Without a path the results are only returned.

    Args:
        on: what layerif measures itself, with `options`; may be empty beside `harness`.
        harness: tasks of lm-evaluation-harness, whose figures come last.

    Raises:
        InputError: as `evaluate`; or the file holds results from different settings.
        NumericalError: as `evaluate`.
    """

    def measured() -> Results:
        results = evaluate(model, tokenizer, on, options=options, cache=cache) if on else None
        if harness is None:
            assert results is not None
            return results
        length = options.max_length
        rows = rows_within(model, options.batch_tokens // length, length)
        found = harness_results(model, tokenizer, harness, batch_size=rows)
        return results.joined(found) if results else found

    if path is None:
        return measured()
    texts = [content_of(source, options) for source in on]
    asked: dict[str, Any] = {}
    if harness is not None:
        texts += [[name, *map(str, task.eval_docs)] for name, task in harness.tasks.items()]
        asked = {"harness": harness.origin, "rows": harness.rows}
    data = hash_texts(texts)
    wanted = fingerprint_of(model, data, {**options.values(), **asked}, tokenizer)
    return json_stage(path, wanted, Results, lambda _steps: measured(), overwrite=overwrite)
