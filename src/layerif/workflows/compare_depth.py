"""Several plans of depth on one model: as many layers dropped, measured on the same items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layerif.artifacts import Comparisons, MetricScores, Plan, Results
from layerif.compress.depth.skipping import Skipping
from layerif.compress.depth.units import check_count, find_units, refuse_dependent_layers
from layerif.core.progress import progress
from layerif.data import Corpus, Task
from layerif.errors import InputError
from layerif.evaluation.comparison import compare
from layerif.evaluation.evaluate import check_sources
from layerif.evaluation.options import EvaluateOptions
from layerif.metrics.measuring import metric_scores
from layerif.model.layers import find_decoder_layers, unwrapped
from layerif.model.opening import Tokenizer
from layerif.plans.named import check_influence, find_plan
from layerif.search.depth_options import DepthSearchOptions
from layerif.search.texts import texts_for
from layerif.workflows.bench import COMPARISON_FILE, Bench
from layerif.workflows.folder import RunFolder
from layerif.workflows.options import DepthStudy
from layerif.workflows.searching import check_unedited, search_into

STUDY = "compare depth"


def compare_depth(  # noqa: PLR0913  # where to, the model, what on, the options
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    names: Sequence[str],
    study: DepthStudy,
    *,
    calibration: Corpus,
    on: Sequence[Task | Corpus],
    options: EvaluateOptions,
    cache: Path | None = None,
) -> dict[str, Results]:
    """Choose layers by each plan, measure the model without them, and test against the first plan.

    The folder gets each plan, its results, and `comparison.json`. What is finished there is not
    done again.

    Args:
        model: a causal LM; as before afterwards.
        names: the plans; the others are compared in pairs with the first.
        calibration: what the plans are made on.
        on: what the models are measured on.
        options: of `evaluate`.
        cache: where likelihoods of the model itself are kept, see `evaluate`.

    Raises:
        InputError: as `check_depth`, before any long work; or the folder holds something else, or a
            plan that was edited.
        NumericalError: what is measured is not finite.
    """
    model = unwrapped(model)
    check_depth(model, tokenizer, names, study, calibration)
    check_sources(model, tokenizer, on, options=options)
    bench = _Bench(folder, model, tokenizer, study, calibration, cache)
    claimed = RunFolder(folder, STUDY)
    with claimed.claimed():
        results = {"dense": bench.measured("dense", None, on, options)}
        with progress("plans", len(names), bar=False) as advance:
            for name in names:
                plan = bench.plan(name)
                if find_plan(name, "depth").searched is None:  # others are saved already
                    claimed.keep_plan(name, plan)
                results[name] = bench.measured(name, plan, on, options)
                advance()
        cut = {name: found for name, found in results.items() if name != "dense"}
        if len(cut) > 1:
            comparisons = compare(cut, next(iter(cut)))
            Comparisons(comparisons=comparisons).save(folder / COMPARISON_FILE)
    return results


def check_depth(
    model: Any,
    tokenizer: Tokenizer,
    names: Sequence[str],
    study: DepthStudy,
    calibration: Corpus,
) -> None:
    """Refuse what cannot be compared; of the model a skeleton will do.

    Raises:
        InputError: there is no such plan, or one that is not of these units; too many are dropped,
            layers depend on one another, sublayers cannot be told apart; or a text is too short.
    """
    check_influence(names, "depth")
    for name in names if study.unit != "layer" else ():
        if name == "contiguous" or find_plan(name, "depth").searched is None:
            raise InputError(f"the plan {name} is one of whole layers; leave it out, or the unit")
    layers = find_decoder_layers(model)
    refuse_dependent_layers(model, layers)
    check_count(find_units(layers, study.unit), study.drop)
    texts_for(model, tokenizer, calibration, None, study)


class _Bench(Bench):
    """One model, without the layers of one plan after another."""

    def __init__(
        self,
        folder: Path,
        model: Any,
        tokenizer: Tokenizer,
        study: DepthStudy,
        calibration: Corpus,
        cache: Path | None,
    ) -> None:
        self._study, self._calibration = study, calibration
        layers = find_decoder_layers(model)
        self._units = find_units(layers, study.unit)
        self._skipping = Skipping(model, layers, self._units)
        super().__init__(folder, model, tokenizer, cache)

    def plan(self, name: str) -> Plan:
        """The plan of a name."""
        named, study = find_plan(name, "depth"), self._study
        if named.searched is not None:
            path = self.folder / f"{name}.json"
            check_unedited(path)
            return search_into(
                path,
                self.model,
                self.tokenizer,
                study.drop,
                calibration=self._calibration,
                options=study.part(DepthSearchOptions).but(**named.searched),
                kind="depth",
                overwrite=True,
            )

        def scores(metric: str | None, options: Any) -> MetricScores:
            return metric_scores(
                self.model,
                metric or "random",  # a map without scores has no use for them
                **options,
                tokenizer=self.tokenizer,
                calibration=self._calibration,
                context_length=study.context_length,
                calibration_samples=-(-study.tokens // study.context_length),
                seed=study.seed,
            )

        kept = len(self._units) - study.drop
        (plan,) = named.plans("depth", kept, scores)
        return plan

    def asked(self, plan: Plan) -> dict[str, Any]:
        return {"dropped": [unit.key for unit in self._dropped(plan)]}

    @contextmanager
    def changed(self, plan: Plan | None) -> Iterator[None]:
        with self._skipping.without([] if plan is None else self._dropped(plan)):
            yield

    def _dropped(self, plan: Plan) -> list[Any]:
        levels = {unit.key: plan.allocation[unit.layer] for unit in self._units if not unit.name}
        levels |= {module.module: module.level for module in plan.modules or ()}
        return [unit for unit in self._units if not levels[unit.key]]
